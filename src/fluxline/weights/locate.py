"""Where a model lies: a folder, a single file, or a repository of the Hugging Face hub."""

import re
from pathlib import Path

from fluxline.errors import LoadError
from fluxline.weights.shelf import held

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WANTED = [
    "*.json",
    "*.txt",
    "*.jinja",
    "*.model",
    "*/*.safetensors",
    "model.safetensors",
    "LICENSE*",
]

VARIANTS = ("fp16", "bf16", "non_ema")
"""Other files of the same weights, by what diffusers puts into their names."""


def locate(model: str) -> Path:
    """Return the folder or .safetensors file `model` names. Fetches nothing.

    Raises LoadError saying what would be right.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    if not HUB_ID.fullmatch(model) or model.startswith("."):
        raise LoadError(
            f"no model {model!r}: give a registry name, a folder in diffusers layout, "
            "a .safetensors file, or a hub id such as black-forest-labs/FLUX.1-schnell"
        )
    if (folder := held(model)) is None:
        raise LoadError(f"{model} is not on this disk: `fluxline models pull {model}` fetches it")
    return folder


def safetensors_in(folder: Path) -> list[Path]:
    """The weight files of a component's folder, one or many shards. Raises LoadError if none."""
    files = sorted(folder.glob("*.safetensors"))
    if plain := [f for f in files if not any(f".{variant}." in f.name for variant in VARIANTS)]:
        files = plain
    if not files:
        raise LoadError(f"no .safetensors file in {folder.name}/: only safetensors are read")
    return files
