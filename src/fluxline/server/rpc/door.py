"""gRPC to requests and back: the ImageGen service over the same `Service` as every HTTP route.

Lives on the API process's event loop.
"""

import asyncio
import hashlib
import math
import uuid
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NoReturn, TypeAlias

import grpc

from fluxline.approximation import approximation_of
from fluxline.errors import (
    Cancelled,
    CapacityError,
    DeadlineExceeded,
    FluxlineError,
    InvalidParams,
    NotReady,
    QueueFull,
    RequestError,
    UnknownModel,
)
from fluxline.jobs import JobRow, JobState, KeyRing
from fluxline.request import (
    SEED_LIMIT,
    GenerationRequest,
    ImageReady,
    ImageResult,
    LoraRef,
    Progress,
    Queued,
    SamplingParams,
    failure_of,
    random_seed,
)
from fluxline.server.auth import caller_of_key
from fluxline.server.body import check_prompt
from fluxline.server.exchange import check_idempotency_key
from fluxline.server.machine import MIB, cpu_percent, memory_of
from fluxline.server.rpc import image_gen_pb2 as pb
from fluxline.server.rpc.image_gen_pb2_grpc import ImageGenServicer
from fluxline.server.uploads import Found, Part, Uploads, check_expand
from fluxline.service import Caller, Drawn, Service, Terms, Wish
from fluxline.service.record import result_of
from fluxline.storage import Pictures

LARGEST_SIDE = 1024  # px
MOST_STEPS = 20
GUIDANCE = (0.1, 10.0)
CHUNK_BYTES = 2**20
WITHOUT_PICTURE = "the picture is no longer kept, or is no PNG: fetch that over HTTP"
MODEL_STAGES = ("encode", "denoise", "decode")

Context: TypeAlias = Any  # a grpc.aio.ServicerContext; grpc has no types

_caller: ContextVar[Caller] = ContextVar("caller")
"""Who makes this call: written by `check`."""

_CODES: tuple[tuple[type[FluxlineError], grpc.StatusCode], ...] = (  # the first that fits counts
    (UnknownModel, grpc.StatusCode.NOT_FOUND),
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (QueueFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (NotReady, grpc.StatusCode.UNAVAILABLE),
    (CapacityError, grpc.StatusCode.UNAVAILABLE),
    (Cancelled, grpc.StatusCode.CANCELLED),
    (FluxlineError, grpc.StatusCode.INTERNAL),
)


class ImageGen(ImageGenServicer):
    """Answers the calls that `check` let in. is_exclusive: one Generate at a time, and not one of
    each key.

    profile: who draws; empty: the server's first.
    """

    def __init__(
        self,
        service: Service,
        pictures: Pictures,
        ring: KeyRing,
        uploads: Uploads,
        *,
        is_exclusive: bool,
        profile: str = "",
    ) -> None:
        self._wish = Wish(profile=profile or None)
        self._service, self._pictures, self._ring = service, pictures, ring
        self._uploads = uploads
        self._is_exclusive = is_exclusive
        self._drawing: set[str] = set()  # owners of Generate calls

    async def check(self, context: Context) -> None:
        """Note who calls, by the api-key in the metadata; end the call of who has no good one."""
        metadata = dict(context.invocation_metadata() or ())
        presented = metadata.get("api-key", "")
        if isinstance(presented, bytes):
            presented = presented.decode("utf-8", "replace")
        try:
            key = await asyncio.to_thread(self._ring.check, presented[:512]) if presented else None
        except NotReady as exc:
            await _abort(context, exc)
        if key is None:
            await _end(context, grpc.StatusCode.UNAUTHENTICATED, "Invalid API key")
        _caller.set(caller_of_key(key))

    async def Ping(self, request: Any, context: Context) -> Any:
        """Say Pong to whoever has a key."""
        return pb.PingResponse(message="Pong")

    async def Generate(self, request: Any, context: Context) -> Any:
        """Draw one picture; refuse at once while another is drawn."""
        caller = _caller.get()
        try:
            wanted, warnings = await self._wanted(request)
            self._enter(caller)
            try:
                await self._opened(wanted)
                job_id, [image] = await self._service.draw(wanted, _terms(context), caller)
            finally:
                self._drawing.discard(caller.owner)
        except FluxlineError as exc:
            await _abort(context, exc)
        image = replace(image, warnings=(*warnings, *image.warnings))
        return _response(image.data, Drawn.of(image), job_id)

    async def GenerateStream(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """Draw one picture and tell how far it is."""
        caller = _caller.get()
        try:
            wanted, warnings = await self._wanted(request)
            await self._opened(wanted)
            async with await self._service.submit(wanted, _terms(context), caller) as ticket:
                async for event in ticket:
                    if error := failure_of(event):
                        raise error
                    match event:
                        case Queued(position=position):
                            told = pb.Queued(job_id=wanted.id, position=position)
                            yield pb.GenerateStreamResponse(queued=told)
                        case Progress(evaluation=done, total=total, preview=preview):
                            far = pb.Progress(
                                evaluation=done, total=total, preview_png=preview or b""
                            )
                            yield pb.GenerateStreamResponse(progress=far)
                        case ImageReady(image=image):
                            image = replace(image, warnings=(*warnings, *image.warnings))
                            for message in _parts(image):
                                yield message
        except FluxlineError as exc:
            await _abort(context, exc)

    async def Submit(self, request: Any, context: Context) -> Any:
        """Accept one picture to be drawn later."""
        caller = _caller.get()
        try:
            wanted, _ = await self._wanted(request.request)
            await self._opened(wanted)
            key = request.idempotency_key if request.HasField("idempotency_key") else None
            if key is not None:
                check_idempotency_key(key, "idempotency_key")
            terms = Terms(
                door="grpc",
                fingerprint=hashlib.sha256(
                    request.request.SerializeToString(deterministic=True)
                ).hexdigest(),
                idempotency_key=key,
                is_attended=False,
            )
            async with await self._service.submit(wanted, terms, caller) as ticket:
                return pb.SubmitResponse(job_id=ticket.job_id)
        except FluxlineError as exc:
            await _abort(context, exc)

    async def GetJob(self, request: Any, context: Context) -> Any:
        """Tell where a job stands."""
        caller = _caller.get()
        try:
            row = await self._service.job(request.job_id, owner=caller.scope)
            if row is None:
                await _end(context, grpc.StatusCode.NOT_FOUND, "no such job")
            result = await self._result(row)
        except FluxlineError as exc:
            await _abort(context, exc)
        is_gone = row.state == JobState.DONE and result is None
        error = WITHOUT_PICTURE if is_gone else row.error_message or ""
        return pb.GetJobResponse(job_id=row.id, state=row.state, error=error, result=result)

    async def Cancel(self, request: Any, context: Context) -> Any:
        """Stop drawing a job."""
        caller = _caller.get()
        try:
            row = await self._service.cancel(request.job_id, owner=caller.scope)
        except FluxlineError as exc:
            await _abort(context, exc)
        if row is None:
            await _end(context, grpc.StatusCode.NOT_FOUND, "no such job")
        return pb.CancelResponse(job_id=row.id, state=row.state)

    async def Metrics(self, request: Any, context: Context) -> Any:
        """Tell how the machine and the workers are."""
        memory, status = memory_of(self._service.engines), self._service.status
        return pb.MetricsResponse(
            cpu_percent=cpu_percent(),
            ram_used_mb=round(memory.ram_used_bytes / MIB),
            gpu_used_mb=round(memory.vram_used_bytes / MIB),
            worker_alive=status.engines > 0,
            grpc_alive=True,
            waiting=status.waiting,
            running=status.running,
        )

    async def _wanted(self, request: Any) -> tuple[GenerationRequest, list[str]]:
        """Read what is to be drawn, and what its caller should know. Raises RequestError."""
        wanted = replace(_read(request), profile=self._service.roster.choose(self._wish))
        if (found := _found(request)) is None:
            return wanted, []
        await self._opened(wanted)
        return await self._uploads.begin(found, wanted, self._service.vet(wanted))

    async def _opened(self, wanted: GenerationRequest) -> None:
        await self._service.roster.opened(wanted.profile or "")

    def _enter(self, caller: Caller) -> None:
        """Take the place of the one that is drawn for. Raises QueueFull."""
        is_busy = bool(self._drawing) if self._is_exclusive else caller.owner in self._drawing
        if is_busy:
            raise QueueFull("another picture is being drawn", retry_after_s=1.0)
        self._drawing.add(caller.owner)

    async def _result(self, row: JobRow) -> Any:
        if row.state != JobState.DONE:
            return None
        [drawn] = result_of(row.result)[:1]
        data = None
        if drawn.key and drawn.format == "png":
            data = await self._pictures.get(drawn.key)
        return _response(data, drawn, row.id) if data else None


def _read(request: Any) -> GenerationRequest:
    """Read a request by the ranges its proto promises. Raises InvalidParams naming the field."""
    for name, low, high in (
        ("height", 1, LARGEST_SIDE),
        ("width", 1, LARGEST_SIDE),
        ("num_inference_steps", 1, MOST_STEPS),
    ):
        value = getattr(request, name)
        if not low <= value <= high:
            raise InvalidParams(f"{name} must be from {low} to {high}; got {value}", field=name)
    low_g, high_g = GUIDANCE
    guidance = round(request.guidance_scale, 6)  # a float32: 0.1 is a little more
    if not low_g <= guidance <= high_g:
        message = f"guidance_scale must be from {low_g} to {high_g}; got {guidance:g}"
        raise InvalidParams(message, field="guidance_scale")
    check_prompt(request.prompt)
    if request.seed >= SEED_LIMIT:
        raise InvalidParams(f"seed must be below {SEED_LIMIT}", field="seed")
    if request.preview_every < 0:
        raise InvalidParams("preview_every must be at least 0", field="preview_every")
    return GenerationRequest(
        id=f"job_{uuid.uuid4().hex}",
        prompt=request.prompt,
        seed=request.seed if request.HasField("seed") else random_seed(),
        preview_every=request.preview_every,
        params=SamplingParams(
            width=request.width,
            height=request.height,
            steps=request.num_inference_steps,
            guidance=guidance,
            strength=round(request.strength, 6) if request.HasField("strength") else None,
            loras=_loras(request),
            parallel=approximation_of(request.parallel) if request.parallel else None,
        ),
    )


def _loras(request: Any) -> tuple[LoraRef, ...] | None:
    """Which LoRAs act; None: nothing is said. The service refuses what is wrong with them."""
    if not request.HasField("loras"):
        return None
    return tuple(
        LoraRef(one.name, round(one.strength, 6)) if one.HasField("strength") else LoraRef(one.name)
        for one in request.loras.named
    )


def _found(request: Any) -> Found | None:
    """Find the pictures of a request. Raises InvalidParams."""
    sides = request.expand
    expand = (sides.left, sides.top, sides.right, sides.bottom)
    check_expand(expand)
    if not (request.image or request.mask or request.references or any(expand)):
        return None
    return Found(
        image=Part(request.image, "image") if request.image else None,
        mask=Part(request.mask, "mask") if request.mask else None,
        references=tuple(
            Part(file, f"references[{number}]") for number, file in enumerate(request.references)
        ),
        expand=expand if any(expand) else None,
    )


def _terms(context: Context) -> Terms:
    left_s = context.time_remaining()
    is_limited = left_s is not None and math.isfinite(left_s) and left_s < 86_400
    return Terms(door="grpc", deadline_s=left_s if is_limited else None)


def _response(data: bytes, drawn: Drawn, job_id: str) -> Any:
    return pb.GenerateResponse(
        image_png=data,
        inference_time=_drawing_s(drawn),
        seed=drawn.seed,
        job_id=job_id,
        warnings=drawn.warnings,
        backend=drawn.backend,
    )


def _parts(image: ImageResult) -> list[Any]:
    """A picture in chunks, and the word that it is whole."""
    data, drawn = image.data, Drawn.of(image)
    chunks = [data[k : k + CHUNK_BYTES] for k in range(0, len(data), CHUNK_BYTES)]
    finished = pb.Finished(
        inference_time=_drawing_s(drawn),
        seed=drawn.seed,
        warnings=drawn.warnings,
        bytes=len(data),
        backend=drawn.backend,
    )
    return [
        *(pb.GenerateStreamResponse(chunk=pb.Chunk(image_png=chunk)) for chunk in chunks),
        pb.GenerateStreamResponse(finished=finished),
    ]


def _drawing_s(drawn: Drawn) -> float:
    return sum(drawn.timings_s.get(stage, 0.0) for stage in MODEL_STAGES)


async def _abort(context: Context, error: FluxlineError) -> NoReturn:
    """End a call with one of our errors."""
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    hint: tuple[tuple[str, str], ...] = ()
    if isinstance(error, CapacityError):
        hint = (("retry-after", str(math.ceil(error.retry_after_s))),)
    await _end(context, code, error.message, hint)


async def _end(
    context: Context,
    code: grpc.StatusCode,
    message: str,
    trailing: tuple[tuple[str, str], ...] = (),
) -> NoReturn:
    await context.abort(code, message, trailing)
    raise AssertionError("abort does not return")
