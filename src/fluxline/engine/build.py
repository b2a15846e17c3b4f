"""Open a model for this machine: which device, which dtype, from where.

Here the rooms below meet: the registry, the checkpoint reader and the family.
"""

from pathlib import Path
from typing import Any

import torch

from fluxline.engine.faults import is_out_of_memory
from fluxline.engine.precision import Precision
from fluxline.errors import ConfigError, LoadError
from fluxline.linear.quantized import unpack
from fluxline.models.base import Checkpoint, DiffusionModel
from fluxline.models.registry import MODELS, entry_for, open_family
from fluxline.models.scorers import ClipScorer, Scorer, TechnicalScorer
from fluxline.weights.locate import locate, safetensors_in
from fluxline.weights.stream import Checkpoint as SafetensorsCheckpoint

TECHNICAL = TechnicalScorer.name
DEVICES = ("auto", "cuda", "mps", "cpu")


def open_model(model: str, device: str = "auto", precision: str = "auto") -> DiffusionModel[Any]:
    """Open a model by registry name, folder, file or hub id, its weights held in that precision.

    Raises LoadError: it is not there, does not fit, or the device or the precision is not.
    """
    held, where = Precision(precision), pick_device(device)
    entry = entry_for(model)
    source = locate(entry.source)
    try:
        return open_family(
            entry.family,
            source,
            name=model if model in MODELS else Path(model).expanduser().resolve().name,
            device=where,
            dtype=held.dtype(fast_dtype(where)),
            checkpoint_at=checkpoint_at,
            precision=held,
        )
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
        raise LoadError(f"{model} does not fit into the memory of {where.type}") from exc


def open_scorer(source: str, device: torch.device) -> Scorer:
    """Open a CLIP by folder or hub id, or the TECHNICAL scorer. Raises LoadError."""
    if source == TECHNICAL:
        return TechnicalScorer()
    return ClipScorer.open(locate(source), device)


def pick_device(asked: str) -> torch.device:
    """The device asked for, or for "auto" the best one here. Raises ConfigError if it is absent.

    "auto:3" and "cuda:3" mean the fourth card, where there are cards.
    """
    kind, _, number = asked.partition(":")
    if kind not in DEVICES:
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}; got {asked!r}")
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if kind == "auto":
        kind = next(name for name, there in has.items() if there)
    elif not has[kind]:
        raise ConfigError(f"device {asked!r} is not available here; use auto or cpu")
    if number and not number.isdecimal():
        raise ConfigError(f"a device's number must be like cuda:1; got {asked!r}")
    if kind != "cuda" or not number:
        return torch.device(kind)
    if int(number) >= (cards := torch.cuda.device_count()):
        raise ConfigError(f"device {asked!r} is not available here; there are {cards} cards")
    return torch.device("cuda", int(number))


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32; float16 overflows in FLUX."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.bfloat16 if device.type == "mps" else torch.float32


def checkpoint_at(path: Path) -> Checkpoint:
    """The checkpoint of a component's folder, or in a file. Raises LoadError."""
    if path.suffix == ".gguf":
        from fluxline.weights.gguf import GgufCheckpoint  # takes a third of a second

        return GgufCheckpoint(path, source=path.name, unpack=unpack)
    files = [path] if path.is_file() else safetensors_in(path)
    return SafetensorsCheckpoint(files, source=path.name, unpack=unpack)
