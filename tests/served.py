"""A real `fluxline serve` of the embedded model, in a process of its own, for tests to speak to."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Where a server listens. grpc: its address for gRPC, if it has one."""

    url: str
    grpc: str
    pid: int


@contextmanager
def served(folder: Path, *flags: str, **environment: str) -> Iterator[Served]:
    """Serve on a free port from `folder`, ready when this yields; it must end well."""
    with (folder / "serve.log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fluxline", "serve", "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env={**os.environ, **environment},
        )
        try:
            first = process.stdout.readline()
            address = re.search(r"listens on (http://\S+)(?: and for gRPC on port (\d+))?", first)
            assert address, "the server said no address"
            assert process.stdout.readline().startswith("ready")
            grpc = f"localhost:{address[2]}" if address[2] else ""
            yield Served(url=address[1], grpc=grpc, pid=process.pid)
        finally:
            process.terminate()
            process.stdout.close()
            code = process.wait(60)
        log.seek(0)
        assert (code, "Traceback" in log.read()) == (0, False)
