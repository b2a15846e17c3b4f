"""Open a model for this machine: which device, which dtype, from where.

Here the rooms below meet: the registry, the checkpoint reader and the family.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from fluxline.engine.faults import is_out_of_memory
from fluxline.engine.peak import free_bytes
from fluxline.engine.placement import place
from fluxline.engine.precision import Precision
from fluxline.engine.shares import OwnBlocks, Share
from fluxline.errors import ConfigError, LoadError
from fluxline.linear.quantized import unpack
from fluxline.models.base import Checkpoint, DiffusionModel
from fluxline.models.registry import MODELS, entry_for, family_of, open_family
from fluxline.models.scorers import ClipScorer, Scorer, TechnicalScorer
from fluxline.parallel.crew import Crew
from fluxline.request import MemoryName
from fluxline.weights.locate import locate, safetensors_in
from fluxline.weights.stream import Checkpoint as SafetensorsCheckpoint

TECHNICAL = TechnicalScorer.name
DEVICES = ("auto", "cuda", "mps", "cpu")
VISITING = 0.6  # of a card's free memory, for weights that visit it; the rest is to draw in


def open_model(
    model: str,
    device: str = "auto",
    precision: str = "auto",
    memory: MemoryName = "auto",
    weights_gb: float | None = None,
    crew: Crew | None = None,
) -> DiffusionModel[Any]:
    """Open a model by registry name, folder, file or hub id, its weights held in that precision.

    memory: where they lie; auto: on the device or, if a card has no room for all, visiting it in
    turn, which `ModelSpec.notes` then says. weights_gb: GiB of those that visit at once; None: what
    leaves room to draw in. crew: the ranks that draw together; where some of them hold weights
    together, only this one's share is opened. Raises LoadError: the model is not there, does not
    fit, or the device, the precision or the memory is not.
    """
    where = pick_device(device)
    try:
        if crew is not None and crew.weights.size * crew.blocks.size > 1:
            return _shared(model, where, precision, memory, weights_gb, crew)
        return _placed(model, where, precision, memory, weights_gb)
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
        raise LoadError(f"{model} does not fit into the memory of {where.type}") from exc


def _placed(
    model: str,
    where: torch.device,
    precision: str,
    memory: MemoryName,
    weights_gb: float | None,
) -> DiffusionModel[Any]:
    if memory not in (known := get_args(MemoryName)):
        raise ConfigError(f"memory must be one of {', '.join(known)}; got {memory!r}")
    stay = memory in ("resident", "spread") or (memory == "auto" and where.type != "cuda")
    if weights_gb is not None and stay:
        raise ConfigError("weights_gb is of weights that visit a card; none would")
    if memory == "resident" or (memory == "auto" and where.type != "cuda"):
        return _opened(model, where, precision)
    if where.type != "cuda":
        raise ConfigError(f"memory {memory} is for cards: on {where.type} use auto")
    if memory == "auto":
        return _as_it_fits(model, where, precision, weights_gb)
    devices = [where]
    if memory == "spread":
        if (count := torch.cuda.device_count()) < 2:
            raise ConfigError(f"memory spread needs two cards or more; there is {count}")
        devices = [torch.device("cuda", number) for number in range(count)]
    opened = _opened(model, torch.device("cpu"), precision, computes_on=where)
    room = VISITING * free_bytes(where) if weights_gb is None else weights_gb * 2**30
    place(opened, memory, devices, budget_bytes=int(room))
    return opened


def _shared(
    model: str,
    where: torch.device,
    precision: str,
    memory: MemoryName,
    weights_gb: float | None,
    crew: Crew,
) -> DiffusionModel[Any]:
    """This rank's share, all of it on its device."""
    if memory not in ("auto", "resident") or weights_gb is not None:
        said = f"memory {memory}" if weights_gb is None else "weights_gb"
        message = f"with {crew.degrees.spelt} each rank's share of the weights stays on its device"
        raise ConfigError(f"{message}: {said} goes with the other axes of parallel")
    return _opened(model, where, precision, crew=crew)


def _as_it_fits(
    model: str, where: torch.device, precision: str, weights_gb: float | None
) -> DiffusionModel[Any]:
    """All weights on the card; where it has no room for them they visit it, and that is said."""
    try:
        return _opened(model, where, precision)
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
    torch.cuda.empty_cache()
    opened = _placed(model, where, precision, "stream", weights_gb)
    note = "not all weights fit into the card's memory: they visit it in turn"
    opened.spec = replace(opened.spec, notes=(*opened.spec.notes, note))
    return opened


def _opened(
    model: str,
    where: torch.device,
    precision: str,
    *,
    computes_on: torch.device | None = None,
    crew: Crew | None = None,
) -> DiffusionModel[Any]:
    """Open a model with its weights there: all, or a share. computes_on: None: there, too."""
    held, entry = Precision(precision, computes_on), entry_for(model)
    source = locate(entry.source)
    return open_family(
        entry.family or family_of(source),
        source,
        name=model if model in MODELS else Path(model).expanduser().resolve().name,
        device=where,
        dtype=held.dtype(fast_dtype(computes_on or where)),
        checkpoint_at=checkpoint_at,
        precision=held,
        share=None if crew is None else _share_of(crew, held),
        beside=None if entry.beside is None else locate(entry.beside),
    )


def _share_of(crew: Crew, precision: Precision) -> Share | OwnBlocks:
    """What a rank has of the weights that several hold together."""
    if crew.blocks.size > 1:
        return OwnBlocks(crew.blocks)
    return Share(crew.weights, precision)


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
