"""The rating page: one local page on which people compare two candidates' answers without knowing whose they are."""

from tunesmith.service.rating.server import RatingServer
from tunesmith.service.rating.session import RatingSession

__all__ = ["RatingServer", "RatingSession"]
