"""One optimizer over many processes: each rank keeps and steps its share, and engines that exist do the moving."""

from fastadam.sharding.errors import CollectiveError, DisagreementError

__all__ = ["CollectiveError", "DisagreementError"]
