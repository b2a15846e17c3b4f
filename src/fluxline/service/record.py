"""What a job's row says: who asked on which terms and, as JSON, what to draw and what was drawn."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from fluxline.errors import EngineError
from fluxline.jobs import JobRow, NewJob
from fluxline.request import (
    Backend,
    GenerationRequest,
    ImageFormat,
    ImageResult,
    SamplingParams,
    ScorerName,
)
from fluxline.service.terms import Caller, Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One picture of a finished job: an `ImageResult` without its bytes. key: None: not kept."""

    index: int
    seed: int
    key: str | None
    sha256: str  # hex, of the file
    size: int  # bytes
    format: ImageFormat
    width: int
    height: int
    model: str
    params: SamplingParams
    timings_s: Mapping[str, float]
    text_tokens: int
    image_tokens: int
    score: float | None
    scorer: ScorerName | None = None  # rows of before have none
    warnings: tuple[str, ...]
    profile: str = ""  # rows of before have none
    backend: Backend = "native"  # rows of before have none

    @classmethod
    def of(cls, image: ImageResult) -> "Drawn":
        """Note a picture down."""
        return cls(
            index=image.index,
            seed=image.seed,
            key=image.stored,
            sha256=hashlib.sha256(image.data).hexdigest(),
            size=len(image.data),
            format=image.format,
            width=image.width,
            height=image.height,
            model=image.model,
            params=image.params,
            timings_s=image.timings_s,
            text_tokens=image.text_tokens,
            image_tokens=image.image_tokens,
            score=image.score,
            scorer=image.scorer,
            warnings=image.warnings,
            profile=image.profile,
            backend=image.backend,
        )

    def image(self, data: bytes) -> ImageResult:
        """The picture as it was, its file being given back."""
        return ImageResult(
            index=self.index,
            seed=self.seed,
            data=data,
            format=self.format,
            width=self.width,
            height=self.height,
            model=self.model,
            params=self.params,
            timings_s=self.timings_s,
            text_tokens=self.text_tokens,
            image_tokens=self.image_tokens,
            score=self.score,
            scorer=self.scorer,
            profile=self.profile,
            backend=self.backend,
            stored=self.key,
            warnings=self.warnings,
        )


class Pictures(msgspec.Struct, frozen=True, array_like=True):
    """The files of the pictures that a job is drawn from, as they lie beside its row."""

    source: bytes | None
    mask: bytes | None
    references: tuple[bytes, ...]


_request = msgspec.json.Decoder(GenerationRequest)
_pictures = msgspec.msgpack.Decoder(Pictures)
_result = msgspec.json.Decoder(tuple[Drawn, ...])


def request_text(request: GenerationRequest) -> str:
    """Write a request down, without its pictures: they lie beside the row."""
    return msgspec.json.encode(without_pictures(request)).decode()


def without_pictures(request: GenerationRequest) -> GenerationRequest:
    """The request, of whose pictures only is said which there are."""
    return replace(
        request,
        source=None if request.source is None else b"",
        mask=None if request.mask is None else b"",
        references=(b"",) * len(request.references),
    )


def pictures_data(request: GenerationRequest) -> bytes | None:
    """Write the pictures of a request down; None: it has none."""
    if not needs_pictures(request):
        return None
    pictures = Pictures(request.source, request.mask, request.references)
    return msgspec.msgpack.encode(pictures)


def needs_pictures(request: GenerationRequest) -> bool:
    """Whether a request is drawn from pictures."""
    return request.source is not None or request.mask is not None or bool(request.references)


def with_pictures(request: GenerationRequest, data: bytes) -> GenerationRequest:
    """The request, with the pictures that were written down."""
    found = _pictures.decode(data)
    return replace(request, source=found.source, mask=found.mask, references=found.references)


def fingerprint(request: GenerationRequest) -> str:
    """What tells a request from others, where a door has not said it: hex."""
    told = hashlib.sha256(request_text(replace(request, traceparent="")).encode())
    told.update(pictures_data(request) or b"")
    return told.hexdigest()


def new_job(
    request: GenerationRequest, terms: Terms, caller: Caller, *, cost: float, holder: str
) -> NewJob:
    """The row of a request that is accepted now."""
    return NewJob(
        id=request.id,
        request=request_text(request),
        fingerprint=terms.fingerprint or fingerprint(request),
        owner=caller.owner,
        idempotency_key=terms.idempotency_key,
        door=terms.door,
        profile=request.profile or "",
        cost=cost,
        priority=caller.priority if caller.owner else request.priority,
        rank=request.priority,
        is_attended=terms.is_attended,
        holder=holder,
        deadline=None if terms.deadline_s is None else time.time() + terms.deadline_s,
        webhook=terms.webhook,
        source=pictures_data(request),
    )


def request_of(row: JobRow) -> GenerationRequest:
    """Read a request. Raises EngineError for a row that another version wrote."""
    try:
        return _request.decode(row.request)
    except msgspec.MsgspecError as exc:
        text = "this version cannot read the job: it was written by another"
        raise EngineError(text) from exc


def told_of(row: JobRow) -> GenerationRequest:
    """Read a request to tell of it; one that cannot be read is told by its id alone."""
    try:
        return request_of(row)
    except EngineError:
        return GenerationRequest(id=row.id, prompt="", seed=0, profile=row.profile)


def result_text(images: Sequence[ImageResult]) -> str:
    """Write down what was drawn."""
    return msgspec.json.encode([Drawn.of(image) for image in images]).decode()


def result_of(text: str | None) -> tuple[Drawn, ...]:
    """Read what was drawn; a job without a result has drawn nothing.

    Raises EngineError for a row that another version wrote.
    """
    try:
        return _result.decode(text) if text else ()
    except msgspec.MsgspecError as exc:
        text = "this version cannot read what the job drew: it was written by another"
        raise EngineError(text) from exc
