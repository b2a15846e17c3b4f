"""What the scheduler moves about: jobs, plans and outcomes. No tensors.

A job is one picture. A request for n pictures is n jobs; the ledger puts them together again.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from fluxline.errors import FluxlineError
from fluxline.request import SamplingParams


class Stage(Enum):
    """Where a job stands. It only moves down this list, and may jump to ENDED from anywhere."""

    WAITING = auto()  # accepted; holds no memory
    RUNNING = auto()  # admitted: noise drawn, prompt encoded
    DECODING = auto()  # at sigma 0; wants the VAE
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What one forward cannot vary by row, and nothing more."""

    image_tokens: int
    text_tokens: int


@dataclass(slots=True, kw_only=True)
class Job:
    """One picture on its way through the engine."""

    # written once, when the request is accepted
    id: str  # "<request id>/<index>"
    request_id: str
    index: int
    prompt: str
    seed: int
    params: SamplingParams  # resolved
    drawn: tuple[int, int]  # px (width, height) the model draws
    key: BatchKey
    rows: int  # of a forward each evaluation takes: 2 with true CFG
    evaluations: int  # in all
    owner: str = ""
    priority: int = 0
    preview_every: int = 0
    # written by the scheduler
    submitted_at: float = 0.0  # s, the scheduler's clock
    stage: Stage = Stage.WAITING
    done: int = 0  # evaluations behind it

    @property
    def tokens(self) -> int:
        """Tokens it adds to a forward."""
        return self.rows * (self.key.image_tokens + self.key.text_tokens)

    @property
    def work_left(self) -> int:
        """Tokens still to be evaluated."""
        return self.tokens * (self.evaluations - self.done)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the runner shall do now, in this order."""

    drop: tuple[str, ...] = ()  # ids of jobs whose memory may go
    admit: tuple[Job, ...] = ()
    evaluate: tuple[Job, ...] = ()  # all of one batch key
    decode: tuple[Job, ...] = ()  # all of one drawn size


@dataclass(slots=True)
class Outcome:
    """What became of a plan. `Pixels` are the runner's and go through untouched."""

    advanced: dict[str, bool] = field(default_factory=dict)  # job id -> has it reached sigma 0?
    pictures: dict[str, object] = field(default_factory=dict)  # job id -> uint8 pixels
    previews: dict[str, object] = field(default_factory=dict)  # job id -> uint8 pixels
    failed: dict[str, FluxlineError] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # job id -> what its owner should know
    out_of_memory: bool = False  # the batch as a whole; nothing in it advanced
    seconds: float = 0.0  # of the evaluation


@dataclass(frozen=True, slots=True)
class Change:
    """Something a job's owner wants to hear of."""

    job: Job
    started: bool = False
    note: str | None = None
    advanced: bool = False
    preview: object | None = None
    picture: object | None = None
    error: FluxlineError | None = None
