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
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fluxline.errors import UnknownLora

SUFFIX = ".safetensors"
HUB_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<file>\w[\w.-]*\.safetensors))?",
    re.ASCII,
)
NAMELESS = ("pytorch_lora_weights", "adapter_model")
"""What diffusers and PEFT call every file: the folder it lies in has the name."""
USUAL = tuple(name + SUFFIX for name in NAMELESS)
PEFT_CONFIG = "adapter_config.json"
PEFT_KEY = "lora_adapter_metadata"
"""Where diffusers writes PEFT's configuration into a file's metadata."""
PREVIEWS = (".preview.png", ".png", ".jpg", ".jpeg", ".webp")
TRIGGERS = ("modelspec.trigger_phrase", "trigger", "trigger_word", "trigger_words")
MAX_HEADER_BYTES = 100 * 2**20  # as safetensors itself has it
MAX_NOTE_BYTES = 2**20
LONGEST_NAME = 1024  # of a name that others are held against
HASH_DIGITS = 12
NEAR = 3  # names that are offered instead of an unknown one
_DOWN = re.compile(r"\.((lora_A|lora_down|down)(\.default)?\.weight|lokr_w[12]_b)$")

State = tuple[int, ...]
"""Sizes and times of change: what tells that a file, or what is said beside it, is another now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraInfo:
    """What is known of a LoRA without loading it."""

    name: str
    path: Path
    size_bytes: int
    rank: int | None  # the largest; None: the file cannot be read, or is a LoKr of whole matrices
    trigger_words: tuple[str, ...]
    preview: Path | None


class HubName(NamedTuple):
    """A repository of the hub, and which of the files at its root; empty: the one there is."""

    repo: str
    file: str


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
        faults: list[OSError] = []
        files, name = self._files(faults.append), unicodedata.normalize("NFC", name)
        if name in files:
            return files[name]
        alike = [full for full in files if full.rpartition("/")[2] == name]
        if len(alike) == 1:
            return files[alike[0]]
        if alike:
            message = f"there are several LoRAs {name!r}: {', '.join(sorted(alike))}"
            raise UnknownLora(message)
        unread = [fault for fault in faults if not isinstance(fault, FileNotFoundError)]
        instead = _unread(unread, files) or _instead(name, list(files))
        raise UnknownLora(f"no LoRA {name[:LONGEST_NAME]!r} here; {instead}")

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

    def _files(self, on_fault: Callable[[OSError], None] | None = None) -> dict[str, Path]:
        found: dict[str, Path] = {}
        nameless = []
        for path in self._paths(on_fault):
            if path.stem in NAMELESS and path.parent != self._folder:
                nameless.append(path)
            else:
                found[self._name_of(path)] = path
        for path in sorted(nameless):
            folder = self._name_of(path.parent)
            found[self._name_of(path) if folder in found else folder] = path
        return found

    def _paths(self, on_fault: Callable[[OSError], None] | None) -> Iterator[Path]:
        for folder, _, names in os.walk(self._folder or "", onerror=on_fault):
            for name in names:
                path = Path(folder, name)
                if path.suffix == SUFFIX and not name.startswith(".") and _is_text(path):
                    yield path

    def _name_of(self, path: Path) -> str:
        assert self._folder is not None  # or nothing would have been found
        inner = path.relative_to(self._folder).as_posix().removesuffix(SUFFIX)
        return unicodedata.normalize("NFC", inner)  # a Mac's disk spells it otherwise

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


def hub_name(name: str) -> HubName | None:
    """What a name means on the hub: `owner/name`, or `owner/name/file.safetensors`."""
    said = HUB_NAME.fullmatch(name)
    if said is None or ".." in name or "--" in name:  # no repository is called so
        return None
    return HubName(said["repo"], said["file"] or "")


def in_hub_cache(wanted: HubName) -> Path | None:
    """The file in the hub's cache on this machine that a name means. Nothing is fetched.

    Without a file's name, that is one with a usual name, or the one that was chosen when all of
    the repository's were known: what somebody else fetched by its own name says nothing of it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(wanted.repo, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    names = [wanted.file] if wanted.file else list(USUAL)
    if not wanted.file and (noted := _choice(folder)).is_file():
        names.append(noted.read_text())
    return next((folder / name for name in names if (folder / name).is_file()), None)


def note_choice(file: Path) -> None:
    """Remember that this file of the hub's cache is what its repository's name means."""
    _choice(file.parent).write_text(file.name)


def _choice(folder: Path) -> Path:
    """Beside a repository's snapshots, of which a folder is one, by its commit."""
    return folder.parents[1] / f"fluxline-{folder.name}"


class Hashes:
    """What files hold, in a dozen digits, each read once. Any thread."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[State, str]] = {}
        self._lock = threading.Lock()

    def of(self, path: Path) -> str:
        """SHA-256 of a safetensors file's tensors, cut short, as Civitai and A1111 have it.

        With what PEFT says of it, if anything: the same tensors act otherwise with another alpha.
        Raises OSError, or ValueError if that is no text.
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
    said = [path.stat()]
    if (beside := _beside(path)) is not None:
        with contextlib.suppress(FileNotFoundError):  # it went this moment
            said.append(beside.stat())
    return tuple(number for one in said for number in (one.st_size, one.st_mtime_ns))


def configuration(path: Path) -> str:
    """What PEFT says of how an adapter acts: beside it, else in it; empty: nothing.

    Raises OSError, or ValueError if it is no text.
    """
    if (beside := _beside(path)) is not None:
        with beside.open("rb") as file:
            if len(said := file.read(MAX_NOTE_BYTES + 1)) > MAX_NOTE_BYTES:
                raise ValueError(f"{PEFT_CONFIG} holds more than {MAX_NOTE_BYTES} bytes")
        return said.decode()
    about = _header(path).get("__metadata__")
    inside = about.get(PEFT_KEY) if isinstance(about, dict) else None
    return inside if isinstance(inside, str) else ""


def _beside(path: Path) -> Path | None:
    """PEFT's configuration, which is of the one file that PEFT itself would read there."""
    config = path.with_name(PEFT_CONFIG)
    return config if path.stem in NAMELESS and config.exists() else None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if said := configuration(path):
        digest = hashlib.sha256(f"{digest} {said}".encode()).hexdigest()
    return digest[:HASH_DIGITS]


def _is_text(path: Path) -> bool:
    """Whether a path can be told to anybody: on Linux a name may be any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _unread(faults: Sequence[OSError], files: Mapping[str, Path]) -> str:
    """Why LoRAs may be missing; nothing, if all could be looked through."""
    if not faults:
        return ""
    what = "a part of the folder of LoRAs" if files else "the folder of LoRAs"
    return f"{what} cannot be read ({faults[0].strerror})"


def _instead(name: str, names: Sequence[str]) -> str:
    if not names:
        return "the folder of LoRAs is empty"
    is_short = len(name) <= LONGEST_NAME  # it takes the product of both lengths
    near = difflib.get_close_matches(name, names, n=NEAR, cutoff=0.5) if is_short else ()
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
