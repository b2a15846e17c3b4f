"""The spans of a job: how long it waited, and how long each picture took in each stage."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Self

from fluxline.errors import CapacityError, FluxlineError, RequestError
from fluxline.images import read_recipe
from fluxline.jobs import JobRow
from fluxline.request import (
    CancelledEvent,
    Done,
    Failed,
    GenerationRequest,
    ImageReady,
    ImageResult,
    Progress,
    Started,
)
from fluxline.service.feed import News
from fluxline.tracing import Tracing, Values


class JobTrace:
    """One attempt at a job, from its acceptance, or from its claim when it was claimed before.

    A worker says how long a picture's stages took and not when they began: that is reckoned back
    from when the picture came, so they stand later by the moment it was on its way. Lives on one
    event loop.
    """

    def __init__(self, tracing: Tracing, row: JobRow, request: GenerationRequest) -> None:
        began = row.created_at if row.fence == 1 else time.time()
        values: Values = {
            "fluxline.job.id": row.id,
            "fluxline.job.attempt": row.attempts,
            "fluxline.door": row.door,
            "fluxline.images": request.count,
        }
        self._span = tracing.resume("job", request.traceparent, values, began=began)
        self._queue = self._span.child("queue", began=began)
        self._came: dict[int, float] = {}
        self._evaluations: dict[int, int] = {}

    def __enter__(self) -> Self:
        self._span.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._queue.end()
        self._span.__exit__(kind, exc, tb)

    def hearing(self, publish: Callable[[News], None]) -> Callable[[News], None]:
        """Hear news when they come; who reads them may be busy with those before."""
        if not self._span.is_told:
            return publish

        def heard(news: News) -> None:
            match news:
                case Started():
                    self._queue.end()
                case Progress(index=index, total=total):
                    self._evaluations[index] = total
                case ImageReady(image=image):
                    self._came[image.index] = time.time()
            publish(news)

        return heard

    @contextmanager
    def picture(self, image: ImageResult, *, is_stored: bool) -> Iterator[None]:
        """Tell of a picture that came, and of how long storing it takes, if it is stored."""
        if not self._span.is_told:
            yield
            return
        stages = {name: s for name, s in image.timings_s.items() if name != "queue"}
        began = self._came.pop(image.index, time.time()) - sum(stages.values())
        with self._span.child("picture", _said_of(image), began=began) as span:
            for name, took_s in stages.items():
                stage = span.child(name, began=began)
                if name == "denoise":
                    stage.note(_drawing(image, self._evaluations.pop(image.index, 0)))
                began += took_s
                stage.end(began)
            with span.child("store") if is_stored else nullcontext():
                yield

    def conclude(self, news: News) -> None:
        """Say how it ended."""
        match news:
            case Done():
                outcome = "done"
            case CancelledEvent():
                outcome = "cancelled"
            case Failed(code=CapacityError.code):  # it goes on, here or elsewhere
                outcome = "put_back"
            case Failed(code=code) | FluxlineError(code=code):
                outcome = "failed"
                self._span.fail(code)
            case _:
                raise TypeError(f"{news} is no end")
        self._span.note({"fluxline.outcome": outcome})


def _said_of(image: ImageResult) -> Values:
    return {
        "fluxline.image.index": image.index,
        "fluxline.image.seed": image.seed,
        "fluxline.image.width": image.width,
        "fluxline.image.height": image.height,
        "fluxline.image.format": image.format,
        "fluxline.image.bytes": len(image.data),
        "fluxline.model": image.model,
    }


def _drawing(image: ImageResult, evaluations: int) -> Values:
    params = image.params
    values = {
        "fluxline.evaluations": evaluations or None,
        "fluxline.steps": params.steps,
        "fluxline.sampler": params.sampler,
        "fluxline.schedule": params.schedule,
        "fluxline.guidance": params.guidance,
        "fluxline.cfg_scale": params.cfg_scale,
        "fluxline.tokens.image": image.image_tokens,
        "fluxline.tokens.text": image.text_tokens,
        "fluxline.beside": beside(image),
    }
    return {name: value for name, value in values.items() if value is not None}


def beside(image: ImageResult) -> int | None:
    """Most pictures it shared a batch with, as its own file says."""
    try:
        recipe = read_recipe(image.data)
    except RequestError:  # no file of ours
        return None
    return recipe.receipt.beside if recipe and recipe.receipt else None
