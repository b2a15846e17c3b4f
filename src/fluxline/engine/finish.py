"""From the pixels a model drew to the file its caller gets. Runs on the finishing threads."""

import time
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from fluxline import images
from fluxline.engine.job import Job
from fluxline.request import GenerationRequest, ImageResult

SOFTWARE = f"fluxline {version('fluxline')}"


def finish(
    request: GenerationRequest,
    job: Job,
    pixels: NDArray[np.uint8],
    *,
    model: str,
    warnings: tuple[str, ...],
    timings_s: Mapping[str, float],
) -> ImageResult:
    """Fit pixels (h, w, 3) to the asked size and encode them with their recipe."""
    began = time.perf_counter()
    width, height = job.params.width, job.params.height
    assert width is not None  # resolved
    assert height is not None
    recipe = images.Recipe(
        prompt=job.prompt,
        seed=job.seed,
        model=model,
        params=job.params,
        software=SOFTWARE,
        rendered=None if job.drawn == (width, height) else job.drawn,
        warnings=warnings,
    )
    data = images.encode(
        images.fit(pixels, width, height),
        format=request.output_format,
        compression=request.compression,
        recipe=recipe,
    )
    return ImageResult(
        index=job.index,
        seed=job.seed,
        data=data,
        format=request.output_format,
        width=width,
        height=height,
        model=model,
        params=job.params,
        timings_s={**timings_s, "compress": time.perf_counter() - began},
        warnings=warnings,
    )
