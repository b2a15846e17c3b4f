"""Write a model anew with its layers in fewer bits, so that it opens without being quantized again.

One tensor is in memory at a time. The folder appears whole or not at all.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fluxline.engine.build import checkpoint_at, pick_device
from fluxline.engine.precision import Precision, layers_filled_by
from fluxline.errors import ConfigError
from fluxline.linear.quantized import OWN_KINDS, pack, unpack
from fluxline.models.base import Part
from fluxline.models.registry import entry_for, family_of, parts_of
from fluxline.weights.locate import locate
from fluxline.weights.packed import Packed
from fluxline.weights.write import Writer

BESIDE = ("*.json", "LICENSE*", "README*")
"""What of a model's own folder is copied along."""

Told = Callable[[str, int, int], None]
"""(part, tensors done, tensors of it)."""


def quantize(
    model: str, precision: str, out: Path, *, device: str = "auto", tell: Told | None = None
) -> int:
    """Write `model`, held in that precision, into the new folder `out`; return its weights' bytes.

    Raises ConfigError: the precision is no kind of quantization, the model is quantized already,
    or there is something at `out`. Raises LoadError if the model cannot be read.
    """
    held, where = Precision(precision), pick_device(device)
    if not held.is_kind:
        known = ", ".join(OWN_KINDS)
        raise ConfigError(f"precision must be one of {known}; got {precision!r}")
    entry = entry_for(model)
    source = locate(entry.source)
    parts = parts_of(entry.family or family_of(source), source, checkpoint_at)
    for part in parts:
        if kinds := sorted(set(part.checkpoint.kinds.values())):
            raise ConfigError(f"{part.name} is quantized already, as {'+'.join(kinds)}")
    with _appearing(out) as folder:
        _copy(source if source.is_dir() else source.parent, folder, {part.name for part in parts})
        return sum(_write(part, held, folder / part.name, where, tell) for part in parts)


def _write(
    part: Part, held: Precision, folder: Path, device: torch.device, tell: Told | None
) -> int:
    """Write a part's tensors; return their bytes."""
    kind = OWN_KINDS[held.kind_in(part)]
    _say_so(folder / "config.json", kind.name)
    writer = Writer(folder, "model" if part.name != "transformer" else "diffusion_pytorch_model")
    for done, (name, tensor) in enumerate(part.checkpoint.tensors(), 1):
        assert isinstance(tensor, torch.Tensor)  # quantized ones were refused
        if _is_unread(name, tensor, part):
            pass
        elif layers_filled_by(name, tuple(tensor.shape), part):
            fields = pack(kind, tensor.to(device, torch.float32))
            writer.add(name, Packed(kind.name, tuple(tensor.shape), fields, unpack))
        else:
            writer.add(name, tensor)
        if tell is not None:
            tell(part.name, done, len(part.checkpoint.shapes))
    writer.close()
    return writer.bytes


def _is_unread(name: str, tensor: torch.Tensor, part: Part) -> bool:
    """Whether a tensor fills nothing, as a language model's head does."""
    return part.layout(name, torch.empty(tensor.shape, device="meta")) == []


def _copy(source: Path, folder: Path, quantized: set[str]) -> None:
    """Copy what is not quantized: whole components, and what describes the others."""
    for pattern in BESIDE:
        for file in source.glob(pattern):
            shutil.copy2(file, folder)
    for component in source.iterdir():
        if component.is_dir() and any(component.glob("*.json")):
            (folder / component.name).mkdir()
            for file in component.iterdir():
                is_weight = file.suffix == ".safetensors" or file.name.endswith(".index.json")
                if file.is_file() and not (is_weight and component.name in quantized):
                    shutil.copy2(file, folder / component.name)
    for name in quantized:
        (folder / name).mkdir(exist_ok=True)


def _say_so(config: Path, kind: str) -> None:
    """Write into a component's configuration how its weights are held, for whoever reads it."""
    said = json.loads(config.read_text("utf-8")) if config.exists() else {}
    said["quantization_config"] = {"quant_method": "fluxline", "kind": kind}
    config.write_text(json.dumps(said, indent=2) + "\n", "utf-8")


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` at the end; where anything fails, nothing does."""
    out = out.expanduser()
    if out.exists():
        raise ConfigError("out must not exist yet")
    folder = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(out)
    except OSError as exc:
        raise ConfigError(f"out cannot be written: {exc.strerror}") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)
