"""An engine without a model, poured in below the worker: `tests.worker.fake_engine:open_engine`.

It is steered by the prompt and by the model's name, as a real one would be:
prompts `hang` (`hang waiting` never starts), `too much` (QueueFull), `poison` (kills its process),
`broken`, `blown` (out of memory);
models `absent` (LoadError), `crash` (an unexpected exception), `killed` (dies while loading).
Pictures are `picture of <prompt> number <index> seed <seed>`: the same for the same request.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from fluxline.ability import EngineStats, ModelInfo
from fluxline.errors import InvalidParams, LoadError, QueueFull
from fluxline.request import (
    CancelledEvent,
    Done,
    Event,
    Failed,
    GenerationRequest,
    ImageReady,
    ImageResult,
    Progress,
    Queued,
    SamplerName,
    ScheduleName,
    Started,
)

INFO = ModelInfo(
    name="fake",
    family="flux1",
    native_width=64,
    native_height=64,
    max_width=512,
    max_height=512,
    default_steps=4,
    max_steps=50,
    guidance=None,
    text_length=64,
    dtype="float32",
    precision="fp32",
    device="cpu",
    samplers=get_args(SamplerName),
    schedules=get_args(ScheduleName),
)


def picture(request: GenerationRequest, index: int) -> bytes:
    """The bytes this engine draws."""
    seed = request.pictures()[index].seed
    return f"picture of {request.prompt} number {index} seed {seed}".encode()


class FakeEngine:
    """Draws at once, except for `hang`, which waits to be cancelled or released."""

    def __init__(self, models: tuple[ModelInfo, ...] = (INFO,)) -> None:
        self.models = models
        self.started: list[GenerationRequest] = []
        self.cancelled: list[str] = []
        self._hanging: dict[str, tuple[GenerationRequest, Callable[[Event], None]]] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    @property
    def stats(self) -> EngineStats:
        return EngineStats(forwards=len(self.started))

    def start(self, request: GenerationRequest, publish: Callable[[Event], None]) -> None:
        if (request.params.width or 0) > INFO.max_width:
            raise InvalidParams(
                f"width must be at most 512; got {request.params.width}", field="width"
            )
        if (request.params.steps or 0) > INFO.max_steps:
            raise InvalidParams("steps must be at most 50", field="steps")
        if request.prompt == "too much":
            raise QueueFull("the engine is full", retry_after_s=0.2)
        if request.prompt == "broken":
            raise RuntimeError("broken")
        self.started.append(request)
        if request.prompt.startswith("hang"):
            with self._lock:
                self._hanging[request.id] = (request, publish)
        thread = threading.Thread(target=self._draw, args=(request, publish), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _draw(self, request: GenerationRequest, publish: Callable[[Event], None]) -> None:
        publish(Queued(request.id))
        if request.prompt == "hang waiting":
            return
        publish(Started(request.id))
        if request.prompt == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        elif request.prompt == "blown":
            publish(Failed(request.id, "out_of_memory", "no memory for this picture"))
        elif request.prompt == "hang after one":
            publish(self._ready(request, 0))
        elif request.prompt != "hang":
            self._finish(request, publish)

    def _finish(self, request: GenerationRequest, publish: Callable[[Event], None]) -> None:
        for index in range(request.count):
            for evaluation in (1, 2, 3, 4):
                is_shown = request.preview_every and evaluation % request.preview_every == 0
                preview = f"preview {evaluation}".encode() if is_shown else None
                publish(Progress(request.id, index, evaluation, 4, preview))
            publish(self._ready(request, index))
        publish(Done(request.id))

    def _ready(self, request: GenerationRequest, index: int) -> ImageReady:
        planned = request.pictures()[index]
        steps = planned.params.steps or 4
        params = replace(planned.params, width=64, height=48, steps=steps)
        image = ImageResult(
            index=index,
            seed=planned.seed,
            data=picture(request, index),
            format=request.output_format,
            width=request.params.width or 64,
            height=request.params.height or 48,
            model=INFO.name,
            backend=self.models[0].backend,
            params=params,
            timings_s={
                "queue": 9.0,
                "encode": 0.25,
                "denoise": 0.5,
                "decode": 0.25,
                "compress": 7.0,
            },
            text_tokens=64,
            image_tokens=16,
            score=None if request.top_k is None else float(index),
            scorer=None if request.top_k is None else "clip",
            warnings=() if request.params.guidance is None else ("guidance has no effect",),
        )
        return ImageReady(request.id, image)

    def release(self) -> None:
        """Let everything that hangs finish."""
        with self._lock:
            hanging, self._hanging = self._hanging, {}
        for request, publish in hanging.values():
            self._finish(request, publish)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        with self._lock:
            found = self._hanging.pop(request_id, None)
        if found:
            found[1](CancelledEvent(request_id))

    def close(self) -> None:
        for thread in self._threads:
            thread.join()


def open_engine(model: str, device: str, on_lost: Callable[[], None], **_: object) -> FakeEngine:
    """Open as `fluxline.engine.open_engine` does."""
    if model == "absent":
        raise LoadError("no model called absent")
    if model == "crash":
        raise ValueError("unexpected")
    if model == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return FakeEngine()


class Flaky(FakeEngine):
    """Hangs on `hang` only in a process that was not told otherwise by the marker file."""

    def _draw(self, request: GenerationRequest, publish: Callable[[Event], None]) -> None:
        if request.prompt.startswith("hang") and os.path.exists(os.environ["FAKE_MARKER"]):
            publish(Started(request.id))
            self._finish(request, publish)
        else:
            super()._draw(request, publish)


def open_flaky(model: str, device: str, on_lost: Callable[[], None], **_: object) -> Flaky:
    """Open an engine that hangs until the file named by FAKE_MARKER exists, then no more."""
    return Flaky()


def open_garbling(model: str, device: str, on_lost: Callable[[], None], **_: object) -> FakeEngine:
    """Write garbage on the socket to the fleet, in the first process only."""
    marker = os.environ["FAKE_MARKER"]
    if not os.path.exists(marker):
        with open(marker, "w"):
            pass
        fd = next(int(word.removeprefix("--fd=")) for word in sys.argv if word.startswith("--fd="))
        os.write(fd, b"\xff\xff\xff\xff")
    return FakeEngine()


class Lost(FakeEngine):
    """Loses its device at the first request, in the first process only."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        super().__init__()
        self._on_lost = on_lost

    def start(self, request: GenerationRequest, publish: Callable[[Event], None]) -> None:
        marker = os.environ["FAKE_MARKER"]
        if not os.path.exists(marker):
            with open(marker, "w"):
                pass
            self._on_lost()
        super().start(request, publish)


def open_lost(model: str, device: str, on_lost: Callable[[], None], **_: object) -> Lost:
    """Open an engine whose device does not live long."""
    return Lost(on_lost)
