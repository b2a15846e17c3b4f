"""Adapters by the names that requests have for them: found, read once, kept while there is room."""

import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from fluxline.engine.cache import ByteLRU
from fluxline.engine.shares import shared_adapter
from fluxline.errors import InvalidParams, LoadError, UnknownLora
from fluxline.linear.lora import LIMIT_BYTES, Adapter, Mix
from fluxline.loras import Hashes, LoraFolder, hub_name, state_of
from fluxline.models.base import Adaptable, DiffusionModel
from fluxline.ops.adapter import Learned, in_dtype, sides_of
from fluxline.request import LoraRef
from fluxline.weights.adapters import adapter_file, fetched_adapter, read_adapter

LARGEST = 1e4
"""Of a value that either side of what an adapter has may hold, multiplied out. What a pair makes of
a row stays finite by far: a row that it does not act on takes 0 times that."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSources:
    """Where an engine takes LoRAs from. By default as its own process may: by path and hub id."""

    folder: Path | None = None  # whose files are known by name
    paths: bool = True  # a request may name a file or a folder
    fetch: bool = True  # what the hub has and its cache here lacks
    cache_bytes: int = LIMIT_BYTES  # of adapters on the CPU, and of those laid out on the device


class Library:
    """Adapters for one model. Any thread: reading a file holds up no forward."""

    def __init__(self, model: DiffusionModel[Any], sources: LoraSources) -> None:
        self._model = model
        self._sources = sources
        self._folder = LoraFolder(sources.folder)
        self._hashes = Hashes()
        self._adapters: ByteLRU[Adapter] = ByteLRU(sources.cache_bytes)
        self._lock = threading.Lock()  # of the cache, and of who reads
        self._reading: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    def mix(self, loras: Sequence[LoraRef]) -> Mix:
        """The adapters that a picture is drawn with, those of strength 0 left out.

        Raises UnknownLora, or InvalidParams for one that this model cannot be drawn with.
        """
        if not loras:
            return ()
        if not isinstance(self._model, Adaptable):
            message = f"{self._model.spec.name} is drawn without LoRA: its family has none here"
            raise InvalidParams(message, field="loras")
        found = [(self._find(lora.name), lora) for lora in loras]
        return tuple(
            (self._opened(file, lora.name, self._model), float(lora.strength))
            for file, lora in found
            if lora.strength
        )

    def _find(self, name: str) -> Path:
        with _told_of(name):
            try:
                return self._folder.find(name)
            except UnknownLora:
                if (path := self._path(name)) is not None:
                    return adapter_file(path)
                if hub_name(name) is None:
                    raise
            return fetched_adapter(name, reach_out=self._sources.fetch)

    def _path(self, name: str) -> Path | None:
        """The file or folder that a name is the path of, where paths are taken."""
        if not self._sources.paths:
            return None
        try:
            path = Path(name).expanduser()
        except RuntimeError:  # of a user whom nobody knows
            return None
        return path if path.exists() else None

    def _opened(self, file: Path, name: str, model: Adaptable) -> Adapter:
        with _told_of(name):
            state = state_of(file)
            key = f"{file} {state}"
            with self._lock:
                reading = self._reading.setdefault(key, threading.Lock())
            with reading:  # two requests for one adapter read it once; others do not wait
                with self._lock:
                    adapter = self._adapters.get(key)
                if adapter is None:
                    adapter = self._read(file, model)
                    if state_of(file) != state:
                        raise LoadError("its file was changed while it was read; ask again")
                    with self._lock:
                        self._adapters.put(key, adapter)
        return adapter

    def _read(self, file: Path, model: Adaptable) -> Adapter:
        tensors, about = read_adapter(file)
        dtype = self._model.dtype
        parts = {
            layer: [in_dtype(learned, dtype) for learned in own]
            for layer, own in model.read_adapter(tensors, about).items()
        }
        _check_values(parts)
        stages = frozenset(model.stage_of(layer) for layer in parts)
        own = shared_adapter(model.adaptable, parts)
        return Adapter(digest=self._hashes.of(file), parts=own, stages=stages)


def _check_values(parts: Mapping[str, Sequence[Learned]]) -> None:
    """Raise LoadError for NaN, infinity and what comes near to it."""
    for layer, own in parts.items():
        for side in (side for learned in own for side in sides_of(learned)):
            if not _largest(side) <= LARGEST:  # nor is NaN
                message = f"beside {layer} it holds values that are not from {-LARGEST:g} to"
                raise LoadError(f"{message} {LARGEST:g}, its scale counted in")


def _largest(side: Sequence[Tensor]) -> float:
    """What no value of a side exceeds, which may be the product of two matrices."""
    inner = math.prod(len(factor) for factor in side[1:])
    return inner * math.prod(float(f.abs().amax()) if f.numel() else 0.0 for f in side)


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Say which LoRA it is that cannot be read."""
    try:
        yield
    except LoadError as exc:
        message = f"LoRA {name!r} cannot be used: {exc.message}"
        raise InvalidParams(message, field="loras") from exc
    except OSError as exc:  # its disk, not its caller: who keeps the server should know
        _log.warning("LoRA %r cannot be read: %s", name, exc)
        why = exc.strerror or type(exc).__name__
        message = f"LoRA {name!r} cannot be used: its file cannot be read ({why})"
        raise InvalidParams(message, field="loras") from exc
