"""What is raised about a file that cannot be believed."""


class CheckpointError(ValueError):
    """The file is damaged, or it is no checkpoint of fastadam. Nothing has been written then."""
