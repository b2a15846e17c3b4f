"""The durable queue: what was accepted is on disk before anybody is told so."""

from fluxline.jobs.database import Database
from fluxline.jobs.keys import Key, KeyRing, Scope
from fluxline.jobs.limits import Limits
from fluxline.jobs.store import JobStore
from fluxline.jobs.table import JobRow, JobState, NewJob, NewWebhook
from fluxline.jobs.webhooks import Webhook, WebhookStore

__all__ = [
    "Database",
    "JobRow",
    "JobState",
    "JobStore",
    "Key",
    "KeyRing",
    "Limits",
    "NewJob",
    "NewWebhook",
    "Scope",
    "Webhook",
    "WebhookStore",
]
