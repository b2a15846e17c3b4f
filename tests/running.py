"""A server in a process of its own with an engine of the tests, and what it may be done to."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
READER = "fluxline.server.reader"
FAKE = "tests.worker.fake_engine:open_engine"
PROGRAM = """
import json, sys
from fluxline.server.serve import run
from fluxline.settings import load_settings
if __name__ == "__main__":
    run(load_settings(json.loads(sys.argv[1])), engine=sys.argv[2])
"""


class Running:
    """A server that listens. first: Python that its process runs before all else."""

    def __init__(self, *, engine=FAKE, first="", **options):
        self.began = time.monotonic()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - no pipe: nobody empties it
        self._logged = ""
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                first + PROGRAM,
                json.dumps({"port": 0, "model": "fake", **options}),
                engine,
            ],
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        found = re.search(r"listens on (http://\S+)", self.line())
        self.url = found[1] if found else ""
        self.port = int(self.url.rpartition(":")[2] or 0)

    def line(self):
        return self.process.stdout.readline()

    @property
    def log(self):
        """What it has logged."""
        if not self._log.closed:
            self._logged = os.pread(self._log.fileno(), 2**24, 0).decode()
        return self._logged

    @property
    def workers(self):
        """Its worker processes; not the one that reads pictures."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if READER not in child.cmdline()]

    def end(self, number=signal.SIGTERM):
        """Stop it, if it has not ended; its exit code, standard output and log."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=60)
        self._close()
        return self.process.returncode, out, self.log

    def kill(self):
        """Kill it, as a machine does that loses its power, but leave its workers be."""
        if self.process.poll() is None:
            self.process.kill()
        if not self._log.closed:
            self.process.communicate()
            self._close()

    def _close(self):
        self._logged = self.log
        self._log.close()
