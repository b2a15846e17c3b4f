"""A folder of LoRA files, as both wings see it: names, and what the files say of themselves.

Reads headers and hashes bytes; what the tensors mean is the engine's business. No torch.
"""

import contextlib
import difflib
import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxline.errors import UnknownLora

SUFFIX = ".safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
NAMELESS = ("pytorch_lora_weights", "adapter_model")
"""What diffusers and PEFT call every file: the folder it lies in has the name."""
PREVIEWS = (".preview.png", ".png", ".jpg", ".jpeg", ".webp")
TRIGGERS = ("modelspec.trigger_phrase", "trigger", "trigger_word", "trigger_words")
MAX_HEADER_BYTES = 100 * 2**20  # as safetensors itself has it
MAX_NOTE_BYTES = 2**20
HASH_DIGITS = 12
NEAR = 3  # names that are offered instead of an unknown one
_DOWN = re.compile(r"\.(lora_A|lora_down|down)(\.default)?\.weight$")

State = tuple[int, int]
"""Size and time of change: what tells that a file is another one now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraInfo:
    """What is known of a LoRA without loading it."""

    name: str
    path: Path
    size_bytes: int
    rank: int | None  # the largest; None: the file cannot be read
    trigger_words: tuple[str, ...]
    preview: Path | None


class LoraFolder:
    """The LoRAs that lie in a folder, looked for anew at every question. Any thread.

    A name is the path within the folder without its ending; its last part is enough where no other
    ends alike. Names are looked up among those found and never made into paths.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._said: dict[Path, tuple[State, int | None, list[str]]] = {}

    def names(self) -> list[str]:
        """All there are now."""
        return sorted(self._files())

    def find(self, name: str) -> Path:
        """The file of that name. Raises UnknownLora, with names that are like it."""
        files = self._files()
        if name in files:
            return files[name]
        alike = [full for full in files if full.rpartition("/")[2] == name]
        if len(alike) == 1:
            return files[alike[0]]
        if alike:
            message = f"there are several LoRAs {name!r}: {', '.join(sorted(alike))}"
            raise UnknownLora(message)
        raise UnknownLora(f"no LoRA {name!r} here; {_instead(name, list(files))}")

    def infos(self) -> list[LoraInfo]:
        """What is known of each, by name."""
        found = []
        for name, path in sorted(self._files().items()):
            with contextlib.suppress(OSError):  # gone since, or a link to nowhere
                found.append(self._info(name, path))
        return found

    def info(self, name: str) -> LoraInfo:
        """What is known of one. Raises UnknownLora."""
        return self._info(name, self.find(name))

    def _files(self) -> dict[str, Path]:
        found = {}
        for folder, _, names in os.walk(self._folder or ""):
            for name in names:
                path = Path(folder, name)
                if path.suffix == SUFFIX and not name.startswith("."):
                    found[self._name_of(path)] = path
        return found

    def _name_of(self, path: Path) -> str:
        assert self._folder is not None  # or nothing would have been found
        inner = path.relative_to(self._folder).with_suffix("")
        is_nameless = inner.name in NAMELESS and inner.parent != Path()
        return (inner.parent if is_nameless else inner).as_posix()

    def _info(self, name: str, path: Path) -> LoraInfo:
        state = state_of(path)
        known = self._said.get(path)
        if known is None or known[0] != state:
            header = _header(path)
            known = self._said[path] = state, _rank(header), _told_words(header)
        _, rank, told = known
        return LoraInfo(
            name=name,
            path=path,
            size_bytes=state[0],
            rank=rank,
            trigger_words=tuple(dict.fromkeys(_noted_words(path) or told)),
            preview=next((p for p in map(path.with_suffix, PREVIEWS) if p.is_file()), None),
        )


def is_in_hub_cache(name: str) -> bool:
    """Whether the hub's cache on this machine has a LoRA of that id. Nothing is fetched."""
    if not HUB_ID.fullmatch(name):
        return False
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return False
    return any(folder.glob(f"*{SUFFIX}"))


class Hashes:
    """What files hold, in a dozen digits, each read once. Any thread."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[State, str]] = {}
        self._lock = threading.Lock()

    def of(self, path: Path) -> str:
        """SHA-256 of a safetensors file's tensors, cut short, as Civitai and A1111 have it.

        Raises OSError.
        """
        state = state_of(path)
        with self._lock:
            known = self._known.get(path)
        if known is None or known[0] != state:
            known = state, _hash(path)
            with self._lock:
                self._known[path] = known
        return known[1]


def state_of(path: Path) -> State:
    """What tells that a file is another one now. Raises OSError."""
    said = path.stat()
    return said.st_size, said.st_mtime_ns


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]


def _instead(name: str, names: Sequence[str]) -> str:
    if not names:
        return "the folder of LoRAs is empty"
    near = difflib.get_close_matches(name, names, n=NEAR, cutoff=0.5)
    return (
        f"did you mean {', '.join(near)}?" if near else f"there is {', '.join(sorted(names)[:8])}"
    )


def _header(path: Path) -> dict[str, Any]:  # Any: JSON
    """What a file says of its tensors and of itself; nothing, if it cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            said = json.loads(file.read(length)) if length <= MAX_HEADER_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _rank(header: Mapping[str, Any]) -> int | None:
    shapes = [
        said.get("shape") or [0]
        for name, said in header.items()
        if _DOWN.search(name) and isinstance(said, dict)
    ]
    return max((shape[0] for shape in shapes if isinstance(shape[0], int)), default=None)


def _told_words(header: Mapping[str, Any]) -> list[str]:
    """What the trainer wrote into the file, else what stood in all captions."""
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict):
        return []
    words = [word for key in TRIGGERS for word in _split(str(metadata.get(key, "")))]
    return words or _common_tags(str(metadata.get("ss_tag_frequency", "")))


def _noted_words(path: Path) -> list[str]:
    """From the files beside it: a plain `.txt`, A1111's `.json`, Civitai's `.civitai.info`."""
    words = _split(_note(path.with_suffix(".txt")) or "")
    for ending in (".json", ".civitai.info"):
        said = _object(_note(path.with_suffix(ending)))
        words += _split(str(said.get("activation text", "")))
        listed = said.get("trainedWords") or said.get("trigger_words") or []
        words += [str(word) for word in listed] if isinstance(listed, list) else []
    return words


def _split(words: str) -> list[str]:
    return [word.strip() for word in re.split(r"[,\n]", words) if word.strip()]


def _common_tags(frequency: str) -> list[str]:
    """Of what kohya counted in the captions, the tags that stood in all of them."""
    counts: dict[str, int] = {}
    for tags in _object(frequency).values():
        for tag, count in (tags if isinstance(tags, dict) else {}).items():
            counts[tag] = counts.get(tag, 0) + (count if isinstance(count, int) else 0)
    most = max(counts.values(), default=0)
    return [tag.strip() for tag, count in counts.items() if count == most][:NEAR]


def _object(text: str | None) -> dict[str, Any]:  # Any: JSON
    try:
        said = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _note(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_NOTE_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
