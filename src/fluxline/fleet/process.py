"""One worker process and its socket, from spawn to reaped. Knows no request and no policy."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from fluxline import wire

ENGINE = "fluxline.engine:open_engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCommand:
    """What to start, and what it is told on its command line."""

    model: str
    device: str  # as the engine understands it, "cuda:1" for one card of many
    precision: str = "auto"
    memory: str = "auto"  # where its weights lie
    weights_gb: float | None = None  # of those that visit a card at once
    parallel: str = ""  # ranks that draw together; empty: one alone
    engine: str = ENGINE  # module:factory, imported in the worker only
    member: int = 0  # which of so many workers it is:
    members: int = 1  # each has its own card, or its own share of the cores
    loras: str = ""  # folder of LoRA files; empty: none
    lora_bytes: int = 0  # of them that are kept
    fetches_loras: bool = False  # from the hub, by their ids
    log_level: str = "info"
    log_format: str = "text"

    def argv(self, fd: int) -> list[str]:
        """Spell the command for a worker that inherits its socket as fd."""
        # -P: a file in the working directory must not stand in for a module of ours.
        return [sys.executable, "-P", "-m", "fluxline.worker", *self.options(fd)]

    def options(self, fd: int) -> list[str]:
        """What it is told, as are other ranks of its replica."""
        options = {
            "--fd": fd,
            "--model": self.model,
            "--device": self.device,
            "--precision": self.precision,
            "--memory": self.memory,
            "--share": f"{self.member}/{self.members}",
            "--parallel": self.parallel,
            "--engine": self.engine,
            "--lora-bytes": self.lora_bytes,
            "--log-level": self.log_level,
            "--log-format": self.log_format,
        }
        spelt = [f"{name}={value}" for name, value in options.items()]
        spelt += [f"--weights-gb={self.weights_gb}"] if self.weights_gb else []
        spelt += [f"--loras={self.loras}"] if self.loras else []
        return [*spelt, "--fetch-loras"] if self.fetches_loras else spelt


class WorkerProcess:
    """A running worker. Made by `spawn`; `end` must be awaited once. Lives on one event loop."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def spawn(cls, command: WorkerCommand) -> Self:
        """Start a worker that shares one end of a fresh socket pair."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                fd = theirs.fileno()
                process = await asyncio.create_subprocess_exec(
                    *command.argv(fd), pass_fds=(fd,), stdin=subprocess.DEVNULL
                )
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: wire.ToWorker) -> None:
        """Send a message. To a worker that has died it goes nowhere; `messages` will end."""
        self._writer.write(wire.frame(message))

    async def messages(self) -> AsyncIterator[wire.FromWorker]:
        """Yield what it says until it closes its end. Raises EngineError on a broken frame."""
        while (message := await wire.read_from_worker(self._reader)) is not None:
            yield message

    def kill(self) -> None:
        """End it now."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self, grace_s: float) -> str:
        """Close the socket, wait grace_s for it to leave, then kill; say how it ended."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        try:
            code = await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            self.kill()
            code = await self._process.wait()
        return f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
