"""The engine: one thread that owns the device, an inbox, and tickets for those who wait.

`tick` is the whole system: the scheduler says what to do, the runner does it, the scheduler
writes down what became of it. Pictures leave for the finishing threads; only the small previews are
encoded here, so that they stay in order.
"""

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from fluxline import images, wire
from fluxline.ability import EngineStats, ModelInfo
from fluxline.engine.build import TECHNICAL, open_model, open_scorer
from fluxline.engine.faults import is_out_of_memory
from fluxline.engine.finish import Finishing
from fluxline.engine.intake import Intake
from fluxline.engine.job import Change, Job
from fluxline.engine.ledger import Ledger, Publish
from fluxline.engine.loras import Library, LoraSources
from fluxline.engine.ranks import divide
from fluxline.engine.receipt import receipt_of
from fluxline.engine.replay import Leader, Tell
from fluxline.engine.runner import Runner
from fluxline.engine.scheduler import Budget, Scheduler
from fluxline.engine.ticket import Ticket, new_request
from fluxline.engine.tune import Tuning, threads_in_use, tune, use_device, use_threads
from fluxline.errors import (
    DeviceLost,
    EngineError,
    FluxlineError,
    LoadError,
)
from fluxline.models.base import Adaptable, Banded, DiffusionModel
from fluxline.models.registry import entry_for
from fluxline.parallel.crew import Crew
from fluxline.request import (
    GenerationRequest,
    ImageResult,
    MemoryName,
    Progress,
    best,
)

_log = logging.getLogger(__name__)


class Engine:
    """Draws pictures of one model, for any number of requests at once.

    model: a registry name, a diffusers folder, a .safetensors or .gguf file or a hub id, or a model
    already open. device: auto, cuda, mps or cpu. precision: how weights are held: auto (what is
    fast, or as the files have them), bf16, fp32 or a kind of quantization. memory, weights_gb:
    where they lie, as `build.open_model` has it. scorer: a CLIP folder or hub id that requests with
    top_k are judged by, or "technical", which reads no prompt; None: the CLIP that the registry
    names for the model, else "technical". budget: how much at once; None: measured now. threads: of
    the CPU, in a forward; None: measured with the budget. loras: where they are taken from; None:
    from paths and the hub. crew, tell: the ranks that draw with this one, the first of them, and
    what tells the others. on_lost: called on the engine's thread should the device be lost; by
    default every request fails.
    Raises LoadError. Methods may be called from any thread but the engine's own.
    """

    def __init__(
        self,
        model: str | DiffusionModel[Any] = "mini",
        *,
        device: str = "auto",
        precision: str = "auto",
        memory: MemoryName = "auto",
        weights_gb: float | None = None,
        scorer: str | None = None,
        budget: Budget | None = None,
        threads: int | None = None,
        loras: LoraSources | None = None,
        on_lost: Callable[[], None] | None = None,
        crew: Crew | None = None,
        tell: Tell | None = None,
    ) -> None:
        own_scorer = None
        if isinstance(model, str):
            name, model = model, open_model(model, device, precision, memory, weights_gb, crew)
            own_scorer = entry_for(name).scorer
        self._model, self._crew, self._parallel = model, crew, ""
        if crew is not None:
            divide(model, crew)
            self._parallel = crew.degrees.spelt
        named = scorer or own_scorer or TECHNICAL
        open_named = functools.cache(functools.partial(open_scorer, named, model.device))
        if scorer is not None:
            open_named()  # a wrong one is told now, not after the first picture
        self._budget, self._asked_threads = budget, threads
        self._on_lost = on_lost or self._give_up
        loras = loras or LoraSources()
        library = Library(model, loras)
        self._intake = Intake(model.spec, library.mix, is_technical=named == TECHNICAL)
        self._ledger = Ledger()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._runner = Runner(model, open_named, crew=crew, lora_bytes=loras.cache_bytes)
        self._execute, self._tell = self._runner.execute, tell
        if tell is not None:
            self._execute = Leader(self._runner, tell).execute
        self._finishing = Finishing(
            model, parallel=self._parallel, deliver=self._ledger.deliver, fail=self._fail_later
        )
        self._closing = False
        self._begin()

    def _begin(self) -> None:
        """Start the engine's thread, and wait until it has opened. Raises what kept it from that,
        a device that is full as LoadError."""
        ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._loop, args=(ready,), name="engine", daemon=True
        )
        self._thread.start()
        error = ready.get()
        if error is None:
            return
        if isinstance(error, Exception) and is_out_of_memory(error):
            size = "x".join(str(side) for side in self._model.spec.native_size)
            raise LoadError(f"the device has no memory to draw {size}") from error
        raise error

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What this engine draws with."""
        model = self._model
        dtype = str(model.dtype).removeprefix("torch.")
        info = model.spec.info(device=str(model.device), dtype=dtype)
        wears_loras = isinstance(model, Adaptable)
        return (replace(info, footprint=self._intake.footprint, wears_loras=wears_loras),)

    @property
    def stats(self) -> EngineStats:
        """What it has done so far, and how it stands."""
        return self._runner.tally.stats(self._model.device, self._scheduler.batch_tokens)

    def generate(
        self,
        prompt: str,
        *,
        n: int = 1,
        top_k: int | None = None,
        seed: int | None = None,
        image: bytes | None = None,
        mask: bytes | None = None,
        references: Sequence[bytes] = (),
        **params: Any,
    ) -> list[ImageResult]:
        """Draw n pictures and wait for them, or for the top_k best of them, best first.

        image: the file of a picture to start from. mask: the file that says what of it is redrawn:
        what is transparent or, where nothing is, what is white. references: files of pictures to
        look at. params: the fields of SamplingParams. Raises RequestError for a wrong field,
        EngineError if a picture failed.
        """
        request = new_request(
            prompt,
            n=n,
            top_k=top_k,
            seed=seed,
            image=image,
            mask=mask,
            references=references,
            params=params,
        )
        return best(self.submit(request).result(), top_k)

    def submit(self, request: GenerationRequest) -> Ticket:
        """Accept a request; the ticket gives its events, to `for` and to `async for`."""
        ticket = Ticket(request.id, self.cancel)
        self.start(request, ticket.put)
        return ticket

    def start(self, request: GenerationRequest, publish: Publish) -> None:
        """Accept a request. Its events go to `publish`: Queued from here, the rest from threads
        of the engine, on which `publish` must not wait for the engine.

        Raises RequestError, or NotReady once the engine is closing.
        """
        jobs = self._intake.jobs_of(request)
        self._ledger.open(request, publish)
        self._inbox.put(lambda: self._accept(jobs))

    def receipts(self, request: GenerationRequest) -> list[images.Receipt]:
        """What the pictures of a request would be made with, each drawn alone. Nothing is drawn.

        Raises RequestError.
        """
        jobs = self._intake.jobs_of(request)
        return [
            receipt_of(job, self._model, threads=self._threads, parallel=self._parallel)
            for job in jobs
        ]

    def cancel(self, request_id: str) -> None:
        """End a request before its next evaluation. Harmless if it has ended."""
        self._inbox.put(lambda: self._cancel(request_id))

    def close(self, drain_s: float = 0.0) -> None:
        """Let open requests run for up to drain_s seconds, end the rest, end the threads."""
        if self._closing:
            return
        self._closing = True
        self._ledger.close("the engine is shutting down")
        self._ledger.wait_empty(drain_s)
        for request_id in self._ledger.open_ids():
            self.cancel(request_id)
        self._inbox.put(_stop)
        self._thread.join()
        self._finishing.close()
        self._runner.close()
        if self._tell is not None:
            self._tell(wire.Over())
        for request_id in self._ledger.open_ids():  # the thread had ended before, with its device
            self._ledger.cancel(request_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- what follows runs on the engine's thread

    def _loop(self, ready: "queue.SimpleQueue[BaseException | None]") -> None:
        try:
            self._open_scheduler()
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that opens the engine
            ready.put(exc)
            return
        ready.put(None)
        with contextlib.suppress(_Stop):
            while True:
                self._read_inbox()
                try:
                    self._tick()
                except DeviceLost as exc:
                    _log.critical("the device is lost: %s", exc)
                    self._ledger.close("the device is lost; the process must be started again")
                    self._on_lost()
                    return
                except Exception:  # noqa: BLE001 - a fault of ours: nobody may wait for ever
                    _log.exception("the engine stumbled; open requests fail")
                    self._fail_all()

    def _open_scheduler(self) -> None:
        use_device(self._model.device)
        tuning = Tuning()
        if self._budget is None:
            tuning = tune(self._model, self._tell, self._crew)
            use_threads(tuning.threads)
        if self._asked_threads is not None:
            use_threads(self._asked_threads)
        self._threads = threads_in_use()
        self._intake.footprint = tuning.footprint
        if isinstance(self._model, Banded) and tuning.footprint is not None:
            self._model.banded.whole_pixels = tuning.footprint.whole_pixels
        budget = self._budget or tuning.budget
        self._scheduler = Scheduler(budget, seconds_per_token=tuning.seconds_per_token)

    def _read_inbox(self) -> None:
        """Obey what has come in; wait for something if there is nothing else to do."""
        while True:
            try:
                command = self._inbox.get(block=self._scheduler.is_idle)
            except queue.Empty:
                return
            command()

    def _tick(self) -> None:
        plan = self._scheduler.next(time.monotonic())
        outcome = self._execute(plan)
        for change in self._scheduler.settle(plan, outcome):
            self._report(change)

    def _accept(self, jobs: list[Job]) -> None:
        now = time.monotonic()
        for job in jobs:
            self._scheduler.add(job, now)

    def _cancel(self, request_id: str) -> None:
        self._scheduler.cancel(request_id)
        self._ledger.cancel(request_id)

    def _report(self, change: Change) -> None:
        job = change.job
        if change.started:
            self._ledger.start(job.request.id)
        if change.advanced:
            preview = None
            if change.preview is not None:
                preview = images.preview(change.preview, job.request.output_format)
            event = Progress(job.request.id, job.index, job.done, job.evaluations, preview)
            self._ledger.progress(event)
        if change.picture is not None:
            self._finishing.put(change, threads=self._threads)
        if change.error is not None:
            self._fail(job.request.id, change.error)

    def _give_up(self) -> None:
        """What a device that is lost means without anybody to start the process anew."""
        for request_id in self._ledger.open_ids():
            self._ledger.fail(request_id, DeviceLost("the device was lost"))

    def _fail_all(self) -> None:
        for request_id in self._ledger.open_ids():
            self._fail(request_id, EngineError("the engine stumbled; the log has the cause"))

    def _fail(self, request_id: str, error: FluxlineError) -> None:
        """One picture failed, so its request does: the others of it are not drawn in vain."""
        self._scheduler.cancel(request_id)
        self._ledger.fail(request_id, error)

    # ---- what follows runs on the finishing threads

    def _fail_later(self, request_id: str, error: FluxlineError) -> None:
        self._inbox.put(lambda: self._fail(request_id, error))


class _Stop(Exception):
    """Thrown into the engine's loop by `close`."""


def _stop() -> None:
    raise _Stop
