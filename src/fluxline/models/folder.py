"""A model's folder as diffusers lays it out: its configurations, and errors that name its parts.

No weights: those are read by whoever is passed in, and by diffusers and transformers.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fluxline.errors import ConfigError, LoadError
from fluxline.models.base import Checkpoint

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Options of a reader that fetches nothing and runs no code of the folder's."""


def require_parts(folder: Path, parts: Sequence[str], *, name: str) -> None:
    """Raise LoadError naming every part that the folder lacks."""
    if absent := [part for part in parts if not (folder / part).is_dir()]:
        raise LoadError(f"{name} lacks {', '.join(f'{part}/' for part in absent)}")


@contextmanager
def reading(part: str) -> Iterator[None]:
    """Name the part that diffusers or transformers could not read; they raise what they like."""
    try:
        yield
    except LoadError as exc:
        raise LoadError(f"{part}/ cannot be read: {exc.message}") from exc
    except Exception as exc:
        raise LoadError(f"{part}/ cannot be read ({type(exc).__name__})") from exc


def read_json(path: Path) -> dict[str, Any]:
    """What a configuration says. Raises ConfigError."""
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot read {path.parent.name}/{path.name}: {exc}") from exc
    return found


def config_of(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of a part, whatever its file is called. Raises ConfigError."""
    return read_json(next(iter(sorted((folder / part).glob("*config.json"))), folder / part))


def said_of_itself(folder: Path) -> dict[str, Any]:
    """What a folder's `fluxline.json` adds: sizes, defaults, a preview map. Empty without one."""
    path = folder / "fluxline.json"
    return read_json(path) if path.exists() else {}


def fingerprint_of(*checkpoints: Checkpoint) -> str:
    """One short name for several checkpoints together."""
    parts = "".join(checkpoint.fingerprint() for checkpoint in checkpoints)
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
