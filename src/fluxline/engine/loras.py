"""Adapters by the names that requests have for them: found, read once, kept while there is room."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxline.engine.cache import ByteLRU
from fluxline.errors import InvalidParams, LoadError, UnknownLora
from fluxline.linear.lora import Adapter, Mix
from fluxline.loras import Hashes, LoraFolder, state_of
from fluxline.models.base import Adaptable, DiffusionModel
from fluxline.request import LoraRef
from fluxline.weights.adapters import adapter_file, fetched_adapter, read_adapter

CACHE_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSources:
    """Where an engine takes LoRAs from. By default as its own process may: by path and hub id."""

    folder: Path | None = None  # whose files are known by name
    paths: bool = True  # a request may name a file or a folder
    fetch: bool = True  # what the hub has and its cache here lacks
    cache_bytes: int = CACHE_BYTES  # of adapters, as the model wears them


class Library:
    """Adapters for one model. Any thread: reading a file holds up no forward."""

    def __init__(self, model: DiffusionModel[Any], sources: LoraSources) -> None:
        self._model = model
        self._sources = sources
        self._folder = LoraFolder(sources.folder)
        self._hashes = Hashes()
        self._adapters: ByteLRU[Adapter] = ByteLRU(sources.cache_bytes)
        self._lock = threading.Lock()

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
        try:
            return self._folder.find(name)
        except UnknownLora:
            is_path = self._sources.paths and Path(name).expanduser().exists()
            if not is_path and "/" not in name:
                raise
        with _told_of(name):
            if is_path:
                return adapter_file(Path(name).expanduser())
            return fetched_adapter(name, reach_out=self._sources.fetch)

    def _opened(self, file: Path, name: str, model: Adaptable) -> Adapter:
        key = f"{file} {state_of(file)}"
        with self._lock, _told_of(name):  # two requests for one adapter read it once
            adapter = self._adapters.get(key)
            if adapter is None:
                adapter = self._read(file, model)
                self._adapters.put(key, adapter)
        return adapter

    def _read(self, file: Path, model: Adaptable) -> Adapter:
        tensors, about = read_adapter(file)
        device, dtype = self._model.device, self._model.dtype
        parts = {
            layer: [(row, a.to(device, dtype), b.to(device, dtype)) for row, a, b in own]
            for layer, own in model.read_adapter(tensors, about).items()
        }
        stages = frozenset(model.stage_of(layer) for layer in parts)
        return Adapter(digest=self._hashes.of(file), parts=parts, stages=stages)


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Say which LoRA it is that cannot be read."""
    try:
        yield
    except LoadError as exc:
        message = f"LoRA {name!r} cannot be used: {exc.message}"
        raise InvalidParams(message, field="loras") from exc
