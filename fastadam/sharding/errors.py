"""What is raised about other ranks."""


class CollectiveError(RuntimeError):
    """A collective of the process group failed, or took longer than its time-out: a rank has died, or hangs."""


class DisagreementError(RuntimeError):
    """Ranks do not do the same: one has other parameters, settings or steps, or has failed.

    Nothing has been written then, and the optimizer can be used on.
    """
