"""Where a model lies: a folder, a single file, or a repository of the Hugging Face hub."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from fluxline.errors import LoadError

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


def locate(model: str) -> Path:
    """Return the folder or .safetensors file `model` names, fetched from the hub if need be.

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
    try:
        return Path(snapshot_download(model, allow_patterns=WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as exc:
        raise LoadError(
            f"cannot fetch {model} from the hub ({type(exc).__name__}). Offline, download it "
            f"elsewhere with `hf download {model}` and give its folder; for a gated model, "
            "accept its licence and set HF_TOKEN"
        ) from exc


def safetensors_in(folder: Path) -> list[Path]:
    """The weight files of a component's folder, one or many shards. Raises LoadError if none."""
    files = sorted(folder.glob("*.safetensors"))
    if plain := [f for f in files if ".fp16." not in f.name and ".bf16." not in f.name]:
        files = plain
    if not files:
        raise LoadError(f"no .safetensors file in {folder.name}/: only safetensors are read")
    return files
