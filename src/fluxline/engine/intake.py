"""A request as jobs: checked whole, each picture resolved against what the model can do."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

from fluxline import images
from fluxline.ability import Footprint, kept_bytes, steps_left
from fluxline.approximation import Approximation
from fluxline.engine.job import BatchKey, Job
from fluxline.engine.sources import Sources
from fluxline.errors import InvalidParams, UnknownModel
from fluxline.linear.lora import Mix
from fluxline.models.spec import ModelSpec
from fluxline.request import SEED_LIMIT, GenerationRequest, LoraRef, Planned
from fluxline.samplers import evaluations

MOST_PICTURES = 1024  # of one request


class Intake:
    """Runs on the caller's thread: reads only the spec, and the LoRAs that are named.

    is_technical: pictures would be judged by a scorer that reads no prompt. footprint: what they
    take, once it is measured.
    """

    def __init__(
        self,
        spec: ModelSpec,
        mix_of: Callable[[Sequence[LoraRef]], Mix],
        *,
        is_technical: bool,
    ) -> None:
        self._spec, self._mix_of, self._is_technical = spec, mix_of, is_technical
        self.footprint: Footprint | None = None

    def jobs_of(self, request: GenerationRequest) -> list[Job]:
        """Check a request and make its jobs. Raises RequestError."""
        self._check(request)
        sources = Sources(request, self._spec)
        mix_of = functools.cache(self._mix_of)  # pictures that wear the same share it
        return [
            self._job(request, index, picture, sources, mix_of)
            for index, picture in enumerate(request.pictures())
        ]

    def _check(self, request: GenerationRequest) -> None:
        """Refuse what is wrong with a request as a whole."""
        name = self._spec.name
        if request.model not in (None, name):
            raise UnknownModel(f"no model {request.model!r} here; there is {name}")
        if not 1 <= request.count <= MOST_PICTURES:
            message = f"n must be from 1 to {MOST_PICTURES}; got {request.count}"
            raise InvalidParams(message, field="n")
        top_k = request.top_k
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            message = f"top_k must be a whole number from 1; got {top_k!r}"
            raise InvalidParams(message, field="top_k")
        if not isinstance(request.prompt, str):
            kind = type(request.prompt).__name__
            raise InvalidParams(f"prompt must be text; got {kind}", field="prompt")
        for seed in [picture.seed for picture in request.plan] or [request.seed]:
            if not 0 <= seed < SEED_LIMIT:
                message = f"seed must be from 0 to {SEED_LIMIT - 1}; got {seed}"
                raise InvalidParams(message, field="seed")

    def _job(
        self,
        request: GenerationRequest,
        index: int,
        picture: Planned,
        sources: Sources,
        mix_of: Callable[[tuple[LoraRef, ...]], Mix],
    ) -> Job:
        spec = self._spec
        params, warnings = spec.resolve(
            picture.params, sources.shape, is_masked=sources.is_masked, like=sources.seen_shape
        )
        if request.top_k is not None and self._is_technical:
            warnings.append(
                "top_k judges sharpness, contrast and range, not the prompt: a CLIP would"
            )
        assert params.width is not None
        assert params.height is not None
        assert params.steps is not None
        assert params.cfg_scale is not None
        images.check_format(
            request.output_format,
            compression=request.compression,
            width=params.width,
            height=params.height,
        )
        drawn = spec.drawn_size(params.width, params.height)
        rows = 2 if params.cfg_scale > 1.0 else 1
        asked = params.width, params.height
        references = sources.references(asked, drawn)
        seen = spec.reference_tokens([(p.pixels.shape[1], p.pixels.shape[0]) for p in references])
        read = spec.references.text_tokens * len(references) if spec.references else 0
        steps = params.steps
        if params.strength is not None:
            steps = steps_left(steps, params.strength)
        count = evaluations(params.sampler, steps)
        if params.parallel is not None:
            settled = self._settled(params.parallel, count, is_shown=bool(references))
            params = replace(params, parallel=settled)
            warnings.append(f"drawn by {settled.spelt} on {spec.ranks} ranks: not quite exactly")
        kept = kept_bytes(params.parallel, spec.info(device="", dtype=""))
        key = BatchKey(
            spec.image_tokens(*drawn),
            spec.text_length + read,
            seen,
            alone=f"{request.id}/{index}" if params.parallel else "",
        )
        if self.footprint is not None:
            other = key.text_tokens + seen
            self.footprint.vet(*drawn, rows=rows, other_tokens=other, kept_bytes=kept)
        return Job(
            request=request,
            index=index,
            seed=picture.seed,
            params=params,
            drawn=drawn,
            source=sources.start(asked, drawn),
            references=references,
            mix=mix_of(params.loras or ()),
            key=key,
            kept_bytes=kept * rows * (key.image_tokens + key.text_tokens + seen),
            rows=rows,
            evaluations=count,
            warnings=tuple(warnings),
        )

    def _settled(self, asked: Approximation, count: int, *, is_shown: bool) -> Approximation:
        """What approximates a picture of so many evaluations, that may be shown others.

        Raises InvalidParams.
        """
        looks = self._spec.references
        if is_shown and looks is not None:
            if looks.in_memory:
                message = f"{self._spec.name} looks at pictures exactly only: leave out parallel"
                raise InvalidParams(message, field="parallel")
            if asked.mode == "pipefusion" and not looks.text_tokens:
                message = "pipefusion draws after no pictures: leave out parallel, or take piflux"
                raise InvalidParams(message, field="parallel")
        return asked.settled(count, self._spec.ranks)
