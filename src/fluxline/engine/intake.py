"""A request as jobs: checked whole, each picture resolved against what the model can do."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

from fluxline import images
from fluxline.ability import Footprint, kept_bytes, steps_left
from fluxline.approximation import Approximation
from fluxline.engine.job import BatchKey, Job, Picture
from fluxline.engine.sources import Sources
from fluxline.errors import InvalidParams, UnknownModel
from fluxline.linear.lora import Mix
from fluxline.models.spec import ModelSpec
from fluxline.request import SEED_LIMIT, GenerationRequest, LoraRef, Planned, SamplingParams
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
        params, warnings = self._resolved(request, picture.params, sources)
        assert params.width is not None
        assert params.height is not None
        assert params.cfg_scale is not None
        rows = 2 if params.cfg_scale > 1.0 else 1
        asked = params.width, params.height
        drawn = self._spec.drawn_size(*asked)
        references = sources.references(asked, drawn)
        count = _evaluations(params)
        if params.parallel is not None:
            settled = self._settled(params.parallel, count, is_shown=bool(references))
            params = replace(params, parallel=settled)
            ranks = self._spec.ranks
            warnings.append(f"drawn by {settled.spelt} on {ranks} ranks: not quite exactly")
        key = self._key(drawn, references, alone=f"{request.id}/{index}" if params.parallel else "")
        return Job(
            request=request,
            index=index,
            seed=picture.seed,
            params=params,
            drawn=drawn,
            kept_bytes=self._kept_bytes(params.parallel, drawn, key, rows),
            source=sources.start(asked, drawn),
            references=references,
            mix=mix_of(params.loras or ()),
            key=key,
            rows=rows,
            evaluations=count,
            warnings=tuple(warnings),
        )

    def _resolved(
        self, request: GenerationRequest, params: SamplingParams, sources: Sources
    ) -> tuple[SamplingParams, list[str]]:
        """What a picture is drawn and encoded with, checked, and what its caller should know."""
        params, warnings = self._spec.resolve(
            params, sources.shape, is_masked=sources.is_masked, like=sources.seen_shape
        )
        if request.top_k is not None and self._is_technical:
            warnings.append(
                "top_k judges sharpness, contrast and range, not the prompt: a CLIP would"
            )
        assert params.width is not None
        assert params.height is not None
        images.check_format(
            request.output_format,
            compression=request.compression,
            width=params.width,
            height=params.height,
        )
        return params, warnings

    def _key(
        self, drawn: tuple[int, int], references: Sequence[Picture], *, alone: str
    ) -> BatchKey:
        """What the forwards of a picture cannot vary by row."""
        looks = self._spec.references
        read = looks.text_tokens * len(references) if looks else 0
        return BatchKey(
            self._spec.image_tokens(*drawn),
            self._spec.text_length + read,
            self._spec.reference_tokens(
                [(p.pixels.shape[1], p.pixels.shape[0]) for p in references]
            ),
            alone=alone,
        )

    def _kept_bytes(
        self, asked: Approximation | None, drawn: tuple[int, int], key: BatchKey, rows: int
    ) -> int:
        """What a rank holds of a picture between evaluations. Raises TooLarge if it never fits."""
        a_token = kept_bytes(asked, self._spec.info(device="", dtype=""))
        other = key.text_tokens + key.reference_tokens
        if self.footprint is not None:
            self.footprint.vet(*drawn, rows=rows, other_tokens=other, kept_bytes=a_token)
        return a_token * rows * (key.image_tokens + other)

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


def _evaluations(params: SamplingParams) -> int:
    """Of a picture, all of whose params are known."""
    assert params.steps is not None
    steps = params.steps
    if params.strength is not None:
        steps = steps_left(steps, params.strength)
    return evaluations(params.sampler, steps)
