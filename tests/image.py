"""An image without an engine: what a Dockerfile says, done in a folder.

Knows the instructions that ours has, and refuses others. The image's own folders become folders
under `root`; its base is the Python that runs the tests; users are not made, only their homes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

USERADD = '#!/bin/sh\nwhile [ "$1" != --home-dir ]; do shift; done\nmkdir -p "$2"\n'
FOLDERS = "data|opt|src"  # of the image; all other paths are the base's


class Image:
    """Built by `build`; then holds what a container of it would get."""

    def __init__(self, dockerfile: Path, context: Path, place: Path, **arguments: str) -> None:
        """Build in `place`. arguments: as given with --build-arg."""
        self._context, self._place, self._arguments = context, place, arguments
        self.root = place / "image"
        useradd = place / "base" / "useradd"
        useradd.parent.mkdir()
        useradd.write_text(USERADD)
        useradd.chmod(0o755)
        for name, rest in instructions(dockerfile):
            getattr(self, f"_{name.lower()}")(rest)

    def mapped(self, text: str) -> str:
        """Say the image's paths as this machine's."""
        return re.sub(rf"(?<![\w/.])/(?=({FOLDERS})\b)", f"{self.root}/", text)

    def _from(self, rest: str) -> None:
        if self.root.exists():  # the stage before this one is put aside
            self.root.rename(self._place / self._stage)
        self.root.mkdir()
        self._stage = rest.partition(" AS ")[2]
        bins = [str(self._place / "base"), str(Path(sys.executable).parent), os.defpath]
        self.environment = {"PATH": ":".join(bins)}
        self._given: dict[str, str] = {}
        self.folder = self.root

    def _arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        self._given[name] = self._arguments.get(name, default)

    def _env(self, rest: str) -> None:
        for pair in rest.split():
            name, _, value = pair.partition("=")
            value = re.sub(r"\$(\w+)", lambda found: self.environment[found[1]], value)
            self.environment[name] = self.mapped(value)

    def _workdir(self, rest: str) -> None:
        self.folder = Path(self.mapped(rest))
        self.folder.mkdir(parents=True, exist_ok=True)

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        origin = self._context
        if sources[0].startswith("--from="):
            origin = self._place / sources.pop(0).removeprefix("--from=")
        for source in sources:
            start = origin / source.lstrip("/")
            end = self.folder / self.mapped(target)
            if start.is_dir():
                shutil.copytree(start, end, symlinks=True)
            else:
                shutil.copy(start, end)

    def _run(self, rest: str) -> None:
        subprocess.run(
            ["/bin/sh", "-ec", self.mapped(rest)],
            cwd=self.folder,
            env={**os.environ, **self._given, **self.environment},
            check=True,
        )

    def _user(self, rest: str) -> None:
        self.user = rest

    def _volume(self, rest: str) -> None:
        self.volume = Path(self.mapped(rest))

    def _expose(self, rest: str) -> None:
        self.ports = rest.split()

    def _healthcheck(self, rest: str) -> None:
        self.healthcheck: list[str] = json.loads(rest.partition("CMD ")[2])

    def _entrypoint(self, rest: str) -> None:
        self.entrypoint: list[str] = json.loads(rest)

    def _cmd(self, rest: str) -> None:
        self.command: list[str] = json.loads(rest)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its rest on one line."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (s.partition(" ") for s in whole.split("\n") if s)]
