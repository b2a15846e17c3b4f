"""A replica in a worker process on this machine: spawned, watched, restarted, stopped."""

import asyncio
import contextlib
import errno
import logging
import time
from dataclasses import dataclass

from fluxline import wire
from fluxline.ability import EngineStats, ModelInfo
from fluxline.errors import EngineError, NotReady, error_of
from fluxline.fleet.held import Holding
from fluxline.fleet.process import WorkerCommand, WorkerProcess
from fluxline.fleet.replica import Publish, ReplicaState
from fluxline.fleet.watch import Patience, Watch
from fluxline.request import GenerationRequest, Terminal

MAX_FAILED_LOADS = 3  # deaths in a row before it was ready
EXIT_GRACE_S = 5.0  # between the last word of a worker and its kill
SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Of what a machine has too little for a while: a worker is tried again however often."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOff:
    """How long to wait before a restart: doubling, forgiven after a spell of health."""

    first_s: float = 0.5
    limit_s: float = 30.0
    healthy_s: float = 60.0

    def after(self, last_s: float, ready_for_s: float) -> float:
        """Say the next wait, from the last one (0: none yet) and how long it was well since."""
        if last_s == 0 or ready_for_s >= self.healthy_s:
            return self.first_s
        return min(2 * last_s, self.limit_s)


class LocalReplica:
    """A `Replica` whose engine runs in a worker process of this machine.

    Lives on one event loop. Requests held by a worker that dies, or hangs and is killed, are sent
    to the next one.
    """

    def __init__(
        self,
        command: WorkerCommand,
        *,
        back_off: BackOff | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.state: ReplicaState = "starting"
        self.reason = "the model is loading"
        self.models: tuple[ModelInfo, ...] = ()
        self.restarts = 0
        self.stats: tuple[EngineStats, ...] = (EngineStats(),)
        self._command = command
        self._back_off = back_off or BackOff()
        self._patience = patience or Patience()
        self._watch = Watch(self._patience)
        self._holding = Holding()
        self._process: WorkerProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready_at = 0.0  # monotonic; 0: this worker is not ready yet
        self._settled = asyncio.Event()
        self._ended = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def ready(self) -> int:
        """One when requests can be submitted now, else none."""
        return int(self.state == "ready")

    @property
    def pid(self) -> int | None:
        """The process id of the living worker."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Begin to load."""
        self._task = asyncio.create_task(self._supervise(), name="fleet.local")

    async def settled(self) -> ReplicaState:
        """Wait until it is ready, has failed or was stopped."""
        await self._settled.wait()
        return self.state

    async def ended(self) -> None:
        """Wait until it has failed for good or was stopped."""
        await self._ended.wait()

    def submit(self, request: GenerationRequest, publish: Publish) -> None:
        """Draw a request. Raises NotReady."""
        if self.state != "ready":
            raise NotReady(f"not ready: {self.reason}", retry_after_s=2.0)
        self._holding.add(request, publish)
        self._dispatch()

    def cancel(self, request_id: str) -> None:
        """Stop drawing a request. An unknown id is ignored."""
        if self._holding.cancel(request_id) and self._process:
            self._process.send(wire.Cancel(request_id))

    async def stop(self) -> None:
        """Fail what is open and end the worker. Safe to call again."""
        was_ready = self.state == "ready"
        if self.state != "failed":
            self._turn("stopped", "the server is shutting down")
        self._stopping.set()
        if self._process and was_ready:
            self._process.send(wire.Stop())
        elif self._process:
            self._process.kill()
        if self._task:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._task), EXIT_GRACE_S)
            if self._process:
                self._process.kill()
            await self._task
        self._ended.set()

    async def _supervise(self) -> None:
        try:
            await self._live()
        except Exception:  # noqa: BLE001 - a fault of ours: nobody may wait for ever
            _log.exception("the supervision of the worker broke")
            self._turn("failed", "the supervision of the worker broke; the log has the cause")
        finally:
            self._holding.fail_all(self.reason)
            self._ended.set()

    async def _live(self) -> None:
        wait_s, failed_loads = 0.0, 0
        while not self._stopping.is_set():
            self._ready_at = 0.0
            try:
                process = await WorkerProcess.spawn(self._command)
            except OSError as exc:
                how = f"cannot be started ({exc.strerror})"
                failed_loads += exc.errno not in SHORTAGES
            else:
                how = await self._live_once(process)
                failed_loads = 0 if self._ready_at else failed_loads + 1
                how = how if self._ready_at else f"{how} while loading"
            if self.state in ("failed", "stopped"):
                break
            was_ready_s = time.monotonic() - self._ready_at if self._ready_at else 0.0
            if failed_loads == MAX_FAILED_LOADS:
                self._turn("failed", f"the worker {how}, {failed_loads} times")
                break
            wait_s = self._back_off.after(wait_s, was_ready_s)
            self._restart_later(how, wait_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)

    async def _live_once(self, process: WorkerProcess) -> str:
        """Follow one worker from birth to death; say how it ended."""
        self._process, self._watch = process, Watch(self._patience)
        grace_s = EXIT_GRACE_S
        watching = asyncio.create_task(self._killed_if_it_hangs(process))
        try:
            if self._stopping.is_set():
                process.kill()
            async for message in process.messages():
                self._watch.heard(message)
                self._take(message)
        except EngineError as exc:
            _log.error("worker %d: %s", process.pid, exc.message)
            grace_s = 0.0
        finally:
            how = await process.end(grace_s)
            self._process = None
            watching.cancel()
        return watching.result() if watching.done() else how

    async def _killed_if_it_hangs(self, process: WorkerProcess) -> str:
        """Watch a worker while it is ready; kill it when it hangs, and say how it hung."""
        while True:
            await asyncio.sleep(self._patience.look_s)
            if self.state == "ready" and (how := self._watch.look(has_work=self._holding.is_busy)):
                self._turn("restarting", f"the worker {how}")
                process.kill()
                return f"{how} and was killed"

    def _take(self, message: wire.FromWorker) -> None:
        match message:
            case wire.Ready(models):
                self.models = models
                self._ready_at = time.monotonic()
                if not self._stopping.is_set():
                    if self.restarts:
                        _log.info("the worker is ready again")
                    self._turn("ready", "")
            case wire.Refused(request_id, code, text, field, retry_after_s):
                error = error_of(code, text, field=field, retry_after_s=retry_after_s)
                self._holding.refuse(request_id, error)
            case wire.Told(stats):
                self.stats = (stats,)
                return
            case wire.Happened():
                event = wire.event_of(message)
                self._holding.route(event)
                if not isinstance(event, Terminal):
                    return
            case wire.Fatal(text):
                _log.error("a worker cannot go on: %s", text)
                self._turn("failed", text)
        self._dispatch()

    def _dispatch(self) -> None:
        if self.state == "ready" and self._process:
            for request in self._holding.sendable():
                self._process.send(wire.Submit(request))

    def _restart_later(self, how: str, wait_s: float) -> None:
        self.restarts += 1
        self._turn("restarting", f"the worker {how} and is being restarted")
        _log.warning("the worker %s; restart %d in %.1f s", how, self.restarts, wait_s)
        self._holding.worker_died()

    def _turn(self, state: ReplicaState, reason: str) -> None:
        self.state, self.reason = state, reason
        if state in ("starting", "restarting"):
            self._settled.clear()
        else:
            self._settled.set()
