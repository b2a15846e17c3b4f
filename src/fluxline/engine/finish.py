"""From the pixels a model drew to the file its caller gets. Runs on the finishing threads."""

import time
from importlib.metadata import version
from typing import Any

from fluxline import images
from fluxline.engine.job import Change
from fluxline.engine.receipt import receipt_of
from fluxline.models.base import DiffusionModel
from fluxline.request import ImageResult

SOFTWARE = f"fluxline {version('fluxline')}"


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
    job, source = change.job, change.job.source
    width, height = job.params.width, job.params.height
    assert width is not None  # resolved
    assert height is not None
    recipe = images.Recipe(
        prompt=job.request.prompt,
        seed=job.seed,
        model=model.spec.name,
        params=job.params,
        software=SOFTWARE,
        rendered=None if job.drawn == (width, height) else job.drawn,
        compression=job.request.compression,
        source=source.drawn.digest if source else None,
        mask=source.mask.digest if source and source.mask else None,
        references=tuple(picture.digest for picture in job.references),
        receipt=receipt_of(job, model, threads=threads, parallel=parallel),
    )
    pixels = images.fit(change.picture, width, height)
    if source is not None and source.asked_mask is not None:
        pixels = images.paste(pixels, source.asked, source.asked_mask)
    data = images.encode(
        pixels,
        format=job.request.output_format,
        compression=job.request.compression,
        recipe=recipe,
    )
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
        timings_s={
            "queue": job.admitted_at - job.submitted_at,
            "encode": job.encoded_at - job.admitted_at,
            "denoise": job.drawn_at - job.encoded_at,
            "decode": decoded_at - job.drawn_at,
            "compress": time.monotonic() - decoded_at,
        },
        score=None if change.score is None else change.score.value,
        scorer=None if change.score is None else change.score.scorer,
        warnings=job.warnings,
    )
