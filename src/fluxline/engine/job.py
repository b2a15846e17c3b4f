"""What the scheduler moves about: jobs, plans and outcomes. No tensors.

A job is one picture. A request for n pictures is n jobs; the ledger puts them together again.
"""

import sys
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, NamedTuple

from fluxline.errors import FluxlineError
from fluxline.request import GenerationRequest, SamplingParams, ScorerName


class Stage(Enum):
    """Where a job stands. It moves down this list, or back to WAITING when memory ran out."""

    WAITING = auto()  # accepted; holds no memory
    RUNNING = auto()  # admitted: noise drawn, prompt encoded
    DECODING = auto()  # at sigma 0; wants the VAE
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What one forward cannot vary by row, and nothing more."""

    image_tokens: int
    text_tokens: int
    reference_tokens: int = 0
    alone: str = ""  # the id of a job that shares no forward


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that a job looks at. Pixels are the runner's and go through untouched."""

    pixels: Any  # uint8 (h, w, 3), or (h, w) of a mask, of the size the model reads
    digest: str  # of the pixels that were given


@dataclass(frozen=True, slots=True)
class Source:
    """A picture that a job starts from, and what of it is redrawn."""

    drawn: Picture  # of the size the model draws; its digest that of `asked`
    asked: Any  # uint8 (height, width, 3): the same picture at the size that was asked
    mask: Picture | None = None  # of the size the model draws, 255 redrawn; None: all is
    asked_mask: Any = None  # uint8 (height, width)


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One picture on its way through the engine. Times are seconds of the scheduler's clock."""

    # written once, when the request is accepted
    request: GenerationRequest
    index: int  # which of the request's pictures
    seed: int
    params: SamplingParams  # resolved
    drawn: tuple[int, int]  # px (width, height) the model draws
    source: Source | None = None  # the picture it starts from
    references: tuple[Picture, ...] = ()  # that it looks at
    mix: tuple[tuple[Any, float], ...] = ()  # adapters and strengths; the runner's, untouched
    key: BatchKey
    rows: int  # of a forward each evaluation takes: 2 with true CFG
    evaluations: int  # in all
    kept_bytes: int = 0  # that it holds from one evaluation to the next, on a rank, while it runs
    id: str = field(init=False)
    # written by the scheduler
    warnings: tuple[str, ...] = ()  # what its caller should know
    stage: Stage = Stage.WAITING
    done: int = 0  # evaluations behind it
    room_beside: int = sys.maxsize  # running jobs that it fits beside, as far as is known
    submitted_at: float = 0.0
    admitted_at: float = 0.0
    encoded_at: float = 0.0
    drawn_at: float = 0.0  # at sigma 0
    beside: int = 0  # most others it shared a batch with: prompts, forwards, decoding

    def __post_init__(self) -> None:
        self.id = f"{self.request.id}/{self.index}"

    @property
    def tokens(self) -> int:
        """Tokens it adds to a forward."""
        key = self.key
        return self.rows * (key.image_tokens + key.text_tokens + key.reference_tokens)

    @property
    def work_left(self) -> int:
        """Tokens still to be evaluated."""
        return self.tokens * (self.evaluations - self.done)

    @property
    def is_alone(self) -> bool:
        """Whether it shares no forward."""
        return bool(self.key.alone)

    @property
    def is_resident(self) -> bool:
        """Whether it holds memory of the device."""
        return self.stage in (Stage.RUNNING, Stage.DECODING)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the runner shall do now, in this order."""

    drop: tuple[str, ...] = ()  # ids of jobs whose memory may go
    decode: tuple[Job, ...] = ()  # all of one drawn size
    admit: tuple[Job, ...] = ()
    evaluate: tuple[Job, ...] = ()  # all of one batch key


class Advance(NamedTuple):
    """How far a job has come."""

    evaluations: int  # of this plan: several at once where its ranks run through it in stages
    is_over: bool  # it has reached sigma 0


class Score(NamedTuple):
    """How good a picture is, and who says so."""

    value: float
    scorer: ScorerName


@dataclass(slots=True)
class Outcome:
    """What became of a plan. Pixels are the runner's and go through untouched."""

    pictures: dict[str, Any] = field(default_factory=dict)  # job id -> uint8 pixels
    scores: dict[str, Score] = field(default_factory=dict)  # job id -> how good it is
    notes: dict[str, str] = field(default_factory=dict)  # job id -> what its owner should know
    admitted_at: float = 0.0  # when the plan's admissions began,
    encoded_at: float = 0.0  # and when they were done
    advanced: dict[str, Advance] = field(default_factory=dict)  # by job id
    previews: dict[str, Any] = field(default_factory=dict)  # job id -> uint8 pixels
    evaluated_s: float = 0.0  # what the evaluation took
    evaluated_at: float = 0.0  # when it was done
    failed: dict[str, FluxlineError] = field(default_factory=dict)
    no_room: set[str] = field(default_factory=set)  # jobs that did not fit, each tried alone
    batch_too_large: bool = False  # the evaluation did not fit: nothing advanced

    def then(self, evaluated: "Outcome") -> "Outcome":
        """This one, of a plan that evaluated nothing, with what came of evaluating after it."""
        return replace(
            evaluated,
            pictures=self.pictures,
            scores=self.scores,
            notes=self.notes,
            admitted_at=self.admitted_at,
            encoded_at=self.encoded_at,
            failed=self.failed | evaluated.failed,
            no_room=self.no_room | evaluated.no_room,
        )


@dataclass(frozen=True, slots=True)
class Change:
    """Something a job's owner wants to hear of."""

    job: Job
    started: bool = False
    advanced: bool = False
    preview: Any = None
    picture: Any = None
    score: Score | None = None
    error: FluxlineError | None = None
