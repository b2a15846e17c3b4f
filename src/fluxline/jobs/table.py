"""The tables, for SQLite and for PostgreSQL, and a job as a value."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 4


class JobState(StrEnum):
    """Where a job stands. It moves down; a lost lease or a retry takes it back to QUEUED."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OVER = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)

metadata = MetaData()

schema = Table(
    "schema",
    metadata,
    Column("version", Integer, nullable=False),
    Column("secret", String(64), nullable=False),  # hex; what the servers sign links with
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("idempotency_key", String(255)),  # unique for its owner
    Column("fingerprint", String(64), nullable=False),  # sha256 of what was asked
    Column("door", String(32), nullable=False),  # the dialect that asked
    Column("request", Text, nullable=False),  # JSON of what shall be drawn
    Column("profile", String(255), nullable=False),  # who shall draw it
    Column("cost", Float, nullable=False),  # predicted, in pixels x evaluations
    Column("priority", Integer, nullable=False),  # before all others
    Column("rank", Integer, nullable=False),  # before its owner's others
    Column("is_attended", Boolean, nullable=False),  # somebody waits on an open connection
    Column("created_at", Float, nullable=False),  # seconds since 1970, as all times here
    Column("deadline", Float),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),  # times it was claimed
    Column("fence", Integer, nullable=False),  # of the last claim; older ones may not write
    Column("holder", String(64)),  # who holds the lease; of a job that waits, who accepted it
    Column("lease_until", Float),  # of a job that waits with its caller, too
    Column("cancel_requested", Boolean, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("result", Text),  # JSON of what was drawn and where it lies
    Column("error_code", String(64)),
    Column("error_message", Text),
    UniqueConstraint("owner", "idempotency_key", name="one_job_a_key"),
    Index("jobs_by_state", "state", "priority", "created_at"),
    Index("jobs_by_owner", "owner", "created_at"),
)

sources = Table(
    "sources",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),  # the pictures that the job is drawn from
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", Text),  # what is told is signed with it; null: it is not signed
    Column("base_url", Text, nullable=False),  # of this server as its caller saw it, for links
    Column("attempts", Integer, nullable=False),
    Column("next_at", Float, nullable=False),  # the next attempt is not before then
    Column("delivered_at", Float),
    Column("error", Text),  # of the last attempt
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("digest", String(64), nullable=False),  # sha256 of the secret
    Column("scopes", String(64), nullable=False),  # words with spaces between
    Column("priority", Integer, nullable=False),
    Column("most_open", Integer),  # requests at a time; null: as many as the queue holds
    Column("rate", Float),  # cost, in pixels x evaluations, a minute; null: no limit
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWebhook:
    """Who wants to be told when a job is over; the columns say what each field means."""

    url: str
    secret: str | None
    base_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What is written when a job is accepted; the columns say what each field means."""

    id: str
    request: str
    fingerprint: str
    owner: str = ""
    idempotency_key: str | None = None
    door: str = "jobs"
    profile: str = ""
    cost: float = 0.0
    priority: int = 0
    rank: int = 0
    is_attended: bool = False
    holder: str | None = None
    deadline: float | None = None
    webhook: NewWebhook | None = None
    source: bytes | None = None  # the pictures it is drawn from; kept while it may be drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job as it was when it was read; the columns say what each field means."""

    id: str
    owner: str
    idempotency_key: str | None
    fingerprint: str
    door: str
    request: str
    profile: str
    cost: float
    priority: int
    rank: int
    is_attended: bool
    created_at: float
    deadline: float | None
    state: JobState
    attempts: int
    fence: int
    holder: str | None
    lease_until: float | None
    cancel_requested: bool
    started_at: float | None
    finished_at: float | None
    result: str | None
    error_code: str | None
    error_message: str | None

    @property
    def token(self) -> tuple[str, int]:
        """What every write of its holder carries: its id and the fence of the claim."""
        return self.id, self.fence

    @property
    def is_fleeting(self) -> bool:
        """Whether it ends with the connection that its caller waits on: nobody can come back."""
        return self.is_attended and self.idempotency_key is None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it, unless it is retried."""
        return self.state in OVER

    @classmethod
    def of(cls, row: RowMapping) -> "JobRow":
        """Read a row of the table."""
        values: dict[str, Any] = dict(row)
        return cls(**{**values, "state": JobState(values["state"])})
