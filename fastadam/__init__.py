"""fastadam: the Adam optimizer step as one fused pass, in place, where the parameters lie, on CPU and CUDA."""

try:
    from fastadam import schedules
    from fastadam.family import Adam, Adamax, AdamW, AdEMAMix, Lion, NAdam, RAdam
    from fastadam.functional import adam_step
    from fastadam.step.rows import SparseRows
    from fastadam.threads import get_num_threads, set_num_threads
except ModuleNotFoundError as error:
    if error.name != "fastadam.kernels":
        raise
    raise ImportError(
        "these are the sources of fastadam, whose kernels are beside them: import what you have installed from another "
        "directory than that of the clone, or install the clone by `pip install -e .`"
    ) from error

__all__ = [
    "AdEMAMix",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "RAdam",
    "SparseRows",
    "adam_step",
    "get_num_threads",
    "schedules",
    "set_num_threads",
]
__version__ = "0.2.0"
