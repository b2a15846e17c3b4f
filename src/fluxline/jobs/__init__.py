"""The durable queue: what was accepted is on disk before anybody is told so."""

from fluxline.jobs.database import Database
from fluxline.jobs.keys import Key, KeyRing, Scope
from fluxline.jobs.store import JobStore, Limits, NewJob
from fluxline.jobs.table import JobRow, JobState

__all__ = [
    "Database",
    "JobRow",
    "JobState",
    "JobStore",
    "Key",
    "KeyRing",
    "Limits",
    "NewJob",
    "Scope",
]
