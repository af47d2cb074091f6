"""Whether there is a GPU to test on."""


def device_problem() -> str | None:
    """Why no CUDA device can be used, or None."""
    try:
        from fastadam.kernels import cuda
    except ImportError as error:
        return f"CuPy is not installed ({error})"
    return cuda.device_problem()
