"""Who asks, on which terms, and how the server that is asked stands."""

import time
from dataclasses import dataclass, field
from typing import Literal

from fluxline.ability import ModelInfo
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.replica import ReplicaState
from fluxline.jobs import NewWebhook

RETRY_GRACE_S = 15.0  # in which the official clients repeat what they did not wait for
MOST_OF = 0.8  # of a patience: a client's clock runs before its first byte is here
UNSURE_GRACE_S = 3.0  # for a client that comes again, but never said when it hangs up


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How the server is, for people and probes. cut_off: the job database does not answer."""

    state: ReplicaState | Literal["cut_off"]
    reason: str  # why it is not ready; empty when it is
    models: tuple[str, ...]
    waiting: int
    running: int
    restarts: int
    engines: int  # that can be given work now
    profiles: tuple["Standing", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one profile is. info: of its model, once it was loaded; engines: that are there."""

    name: str
    model: str
    state: ReplicaState
    reason: str
    info: ModelInfo | None
    engines: int
    held_bytes: int

    @classmethod
    def of(cls, one: OnDemand) -> "Standing":
        """Look at a profile now."""
        info = next(iter(one.models), None)
        return cls(
            name=one.name,
            model=info.name if info else one.profile.model_name,
            state=one.state,
            reason=one.reason,
            info=info,
            engines=one.loaded,
            held_bytes=one.held_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request says of who shall draw it. preferred: profiles, if it does not say."""

    model: str | None = None
    profile: str | None = None
    preferred: tuple[str, ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks. most_open: requests that may wait or run at a time. rate: cost a minute.

    None: no limit of their own. is_admin: sees and touches everybody's jobs.
    """

    owner: str = ""
    priority: int = 0
    most_open: int | None = None
    rate: float | None = None
    is_admin: bool = False

    @property
    def scope(self) -> str | None:
        """Whose jobs they see; None: everybody's."""
        return None if self.is_admin else self.owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a request is asked; written by the doors.

    fingerprint: hash of what was sent, to know it again. is_attended: the caller waits on an open
    connection. keeps: the pictures are stored (those of a request that is not fleeting always
    are). patience_s: when the caller hangs up to ask again, counted from asked_at. may_retry: it
    does, whether it says when or not. webhook: who is told when it is over.
    """

    door: str = "openai"
    fingerprint: str = ""
    idempotency_key: str | None = None
    is_attended: bool = True
    is_retry: bool = False
    may_retry: bool = False
    keeps: bool = False
    patience_s: float | None = None
    deadline_s: float | None = None
    webhook: NewWebhook | None = None
    asked_at: float = field(default_factory=time.monotonic)

    @property
    def is_fleeting(self) -> bool:
        """Whether the request ends with the connection: without a key nobody can come back."""
        return self.is_attended and self.idempotency_key is None

    @property
    def grace_s(self) -> float:
        """How long somebody who hangs up now may take to come again."""
        if self.patience_s is None:
            return UNSURE_GRACE_S if self.may_retry else 0.0
        waited_s = time.monotonic() - self.asked_at
        return RETRY_GRACE_S if waited_s >= MOST_OF * self.patience_s else 0.0
