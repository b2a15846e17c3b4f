"""The durable queue: what was accepted is on disk before anybody is told so."""

from fluxline.jobs.keys import Key, KeyRing, Scope
from fluxline.jobs.store import Claim, JobStore, Limits, NewJob
from fluxline.jobs.table import JobRow, JobState

__all__ = ["Claim", "JobRow", "JobState", "JobStore", "Key", "KeyRing", "Limits", "NewJob", "Scope"]
