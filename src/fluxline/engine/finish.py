"""From the pixels a model drew to the file its caller gets. Runs on the finishing threads."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from fluxline import images
from fluxline.engine.job import Change, Job
from fluxline.engine.receipt import receipt_of
from fluxline.errors import EngineError, FluxlineError
from fluxline.models.base import DiffusionModel
from fluxline.models.spec import ModelSpec
from fluxline.request import ImageResult

SOFTWARE = f"fluxline {version('fluxline')}"
FINISHING_THREADS = 2

_log = logging.getLogger(__name__)


class Finishing:
    """Threads that make files of pictures. `put` is called on the engine's.

    parallel: the ranks that they are drawn with, for receipts. deliver, fail: told what became of a
    job's picture, on one of those threads.
    """

    def __init__(
        self,
        model: DiffusionModel[Any],
        *,
        parallel: str,
        deliver: Callable[[str, ImageResult], None],
        fail: Callable[[str, FluxlineError], None],
    ) -> None:
        self._model, self._parallel = model, parallel
        self._deliver, self._fail = deliver, fail
        self._pool = ThreadPoolExecutor(FINISHING_THREADS, thread_name_prefix="finish")

    def put(self, change: Change, *, threads: int) -> None:
        """Finish a change's picture, which was decoded now with so many CPU threads."""
        self._pool.submit(self._finish, change, threads, time.monotonic())

    def close(self) -> None:
        """Wait until all are finished."""
        self._pool.shutdown(wait=True)

    def _finish(self, change: Change, threads: int, decoded_at: float) -> None:
        job = change.job
        try:
            image = finish(
                change,
                model=self._model,
                threads=threads,
                parallel=self._parallel,
                decoded_at=decoded_at,
            )
        except FluxlineError as exc:
            self._fail(job.request.id, exc)
        except Exception:  # noqa: BLE001 - the door of the finishing thread: logged, told
            _log.exception("finishing %s failed", job.id)
            self._fail(job.request.id, EngineError(f"picture {job.index} could not be encoded"))
        else:
            self._deliver(job.request.id, image)


def finish(
    change: Change,
    *,
    model: DiffusionModel[Any],
    threads: int,
    parallel: str,
    decoded_at: float,
) -> ImageResult:
    """Fit a change's picture, pixels (h, w, 3), to the asked size and encode it with its recipe.

    threads, parallel: of the CPU, and ranks, that it was drawn with; for its receipt.
    """
    job = change.job
    receipt = receipt_of(job, model, threads=threads, parallel=parallel)
    data = images.encode(
        _fitted(change),
        format=job.request.output_format,
        compression=job.request.compression,
        recipe=_recipe(job, model.spec, receipt),
    )
    width, height = _size(job)
    return ImageResult(
        index=job.index,
        seed=job.seed,
        data=data,
        format=job.request.output_format,
        width=width,
        height=height,
        model=model.spec.name,
        params=job.params,
        backend=model.spec.backend,
        text_tokens=job.key.text_tokens,
        image_tokens=job.key.image_tokens,
        timings_s=_timings_s(job, decoded_at),
        score=None if change.score is None else change.score.value,
        scorer=None if change.score is None else change.score.scorer,
        warnings=job.warnings,
    )


def _size(job: Job) -> tuple[int, int]:
    """Width and height that were asked, in px."""
    width, height = job.params.width, job.params.height
    assert width is not None  # resolved
    assert height is not None
    return width, height


def _fitted(change: Change) -> images.Pixels:
    """The picture at the size that was asked, and its source where that was not redrawn."""
    pixels, source = images.fit(change.picture, *_size(change.job)), change.job.source
    if source is None or source.asked_mask is None:
        return pixels
    return images.paste(pixels, source.asked, source.asked_mask)


def _recipe(job: Job, spec: ModelSpec, receipt: images.Receipt) -> images.Recipe:
    """What a job was drawn after."""
    source = job.source
    return images.Recipe(
        prompt=job.request.prompt,
        seed=job.seed,
        model=spec.name,
        params=job.params,
        software=SOFTWARE,
        rendered=None if job.drawn == _size(job) else job.drawn,
        compression=job.request.compression,
        source=source.drawn.digest if source else None,
        mask=source.mask.digest if source and source.mask else None,
        references=tuple(picture.digest for picture in job.references),
        receipt=receipt,
    )


def _timings_s(job: Job, decoded_at: float) -> dict[str, float]:
    """Seconds of each part of a job's way, up to now."""
    return {
        "queue": job.admitted_at - job.submitted_at,
        "encode": job.encoded_at - job.admitted_at,
        "denoise": job.drawn_at - job.encoded_at,
        "decode": decoded_at - job.drawn_at,
        "compress": time.monotonic() - decoded_at,
    }
