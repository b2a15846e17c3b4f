"""Adapter files: where they lie, and what is in them. What it means is the family's business."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluxline.errors import LoadError, UnknownLora
from fluxline.weights.locate import HUB_ID

SUFFIX = ".safetensors"
USUAL = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PEFT_CONFIG = "adapter_config.json"
PEFT_KEY = "lora_adapter_metadata"
"""Where diffusers writes PEFT's configuration into a file's metadata."""


def adapter_file(path: Path) -> Path:
    """The file that a path means: itself, or the one in a folder that is the adapter.

    Raises LoadError.
    """
    if path.is_file() and path.suffix == SUFFIX:
        return path
    if path.is_file():
        raise LoadError(f"only {SUFFIX} files are read, not {path.suffix or 'this one'}")
    files = sorted(path.glob(f"*{SUFFIX}"))
    usual = [file for file in files if file.name in USUAL]
    if len(usual or files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise LoadError(f"its folder must hold one adapter; there is {names}")
    return (usual or files)[0]


def fetched_adapter(name: str, *, reach_out: bool) -> Path:
    """The file of a repository of the hub. reach_out: fetch what the cache here lacks.

    Raises UnknownLora if it is not to be had, LoadError if it is no adapter.
    """
    if not HUB_ID.fullmatch(name):
        raise UnknownLora(f"no LoRA {name!r} here")
    wanted = [f"*{SUFFIX}", PEFT_CONFIG]
    try:
        folder = snapshot_download(name, allow_patterns=wanted, local_files_only=not reach_out)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as exc:
        why = "it could not be fetched" if reach_out else "this server fetches none"
        message = f"no LoRA {name!r} here, neither by name nor in the hub's cache; {why}"
        raise UnknownLora(message) from exc
    return adapter_file(Path(folder))


def read_adapter(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file and its metadata, PEFT's configuration beside it too.

    Raises LoadError.
    """
    try:
        with safe_open(file, framework="pt") as handle:
            # copies: the file may be written anew while its adapter is in use
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
            about = dict(handle.metadata() or {})
        config = file.with_name(PEFT_CONFIG)
        if config.exists():
            about[PEFT_KEY] = config.read_text("utf-8")
    except (SafetensorError, OSError, ValueError) as exc:
        raise LoadError(f"{file.name} cannot be read: {exc}") from exc
    return tensors, about
