"""Adapter files: where they lie, and what is in them. What it means is the family's business.

One that is not here is fetched from the hub: one file, chosen and weighed by what the hub says of
a repository before anything is on its way.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluxline.errors import LoadError, UnknownLora
from fluxline.loras import (
    PEFT_CONFIG,
    PEFT_KEY,
    SUFFIX,
    USUAL,
    HubName,
    configuration,
    hub_name,
    in_hub_cache,
    note_choice,
)

MOST_BYTES = 4 * 2**30
"""Of one file. A FLUX.1's LoRA of rank 256 beside every layer takes 2.7 GiB in bfloat16."""
MOST_CONFIG_BYTES = 2**20
HUB_S = 10.0  # for what the hub says of a repository
SHOWN = 8  # names in a message
READ = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def adapter_file(path: Path) -> Path:
    """The file that a path means: itself, or the one in a folder that is the adapter.

    Raises LoadError.
    """
    if path.is_file() and path.suffix == SUFFIX:
        return path
    if path.is_file():
        raise LoadError(f"only {SUFFIX} files are read, not {path.suffix or 'this one'}")
    return path / _chosen([file.name for file in path.iterdir()], "its folder")


def fetched_adapter(name: str, *, reach_out: bool) -> Path:
    """The file that a hub id names: what is in the cache here or, to reach out, on the hub.

    Raises UnknownLora if it is not to be had, LoadError if it is no adapter.
    """
    if (wanted := hub_name(name)) is None:
        raise UnknownLora(f"no LoRA {name!r} here")
    if (file := in_hub_cache(wanted)) is not None:
        return file
    if not reach_out:
        why = "this server fetches none"
        raise UnknownLora(f"no LoRA {name!r} here, neither by name nor in the hub's cache; {why}")
    with _translated(name):
        return _fetched(wanted)


def read_adapter(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file and its metadata, PEFT's configuration beside it too.

    Raises LoadError.
    """
    try:
        _weigh(file.name, file.stat().st_size)
        with safe_open(file, framework="pt") as handle:
            about = dict(handle.metadata() or {})
            # copies: the file may be written anew while its adapter is in use
            tensors = {name: _floats(name, handle.get_tensor(name)) for name in handle.keys()}  # noqa: SIM118
        if said := configuration(file):
            about[PEFT_KEY] = said
    except (SafetensorError, ValueError) as exc:
        raise LoadError(f"{file.name} cannot be read: {exc}") from exc
    return tensors, about


def _floats(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in READ and tensor.numel() > 1:  # an alpha may be a whole number
        kind = str(tensor.dtype).removeprefix("torch.")
        raise LoadError(f"{name} holds {kind}, which is not read: only floats are")
    return tensor.float() if tensor.element_size() == 1 else tensor.clone()


def _weigh(name: str, size: int | None, most: int = MOST_BYTES) -> None:
    """Raise LoadError for a file that is too large to be what it should."""
    if size is None:
        raise LoadError(f"the hub does not say how large {name} is")
    if size > most:
        raise LoadError(f"{name} is of {size / 2**30:.2g} GiB; at most {most / 2**30:.2g} are read")


def _chosen(names: Sequence[str], where: str) -> str:
    """The one of a folder's files that is the adapter. Raises LoadError."""
    files = sorted(name for name in names if name.endswith(SUFFIX) and "/" not in name)
    if usual := [name for name in USUAL if name in files]:
        return usual[0]
    if len(files) != 1:
        shown = ", ".join(files[:SHOWN]) + (", …" if len(files) > SHOWN else "")
        raise LoadError(f"{where} must hold one adapter; there is {shown or 'none'}")
    return files[0]


def _fetched(wanted: HubName) -> Path:
    """Fetch one file from the root of a repository, and PEFT's configuration before it."""
    told = HfApi().model_info(wanted.repo, files_metadata=True, timeout=HUB_S)
    sizes = {one.rfilename: one.size for one in told.siblings or ()}
    name = _offered(wanted, sizes)
    _weigh(name, sizes[name])
    if PEFT_CONFIG in sizes and name in USUAL:
        _weigh(PEFT_CONFIG, sizes[PEFT_CONFIG], MOST_CONFIG_BYTES)
        hf_hub_download(wanted.repo, PEFT_CONFIG)
    file = Path(hf_hub_download(wanted.repo, name))
    if not wanted.file:
        note_choice(file)
    return file


def _offered(wanted: HubName, sizes: Mapping[str, int | None]) -> str:
    if wanted.file in sizes:
        return wanted.file
    if not wanted.file:
        try:
            return _chosen(list(sizes), "the root of its repository")
        except LoadError as exc:
            several = sum(name.endswith(SUFFIX) for name in sizes) > 1
            hint = f"; name the one that is meant: {wanted.repo}/FILE{SUFFIX}" if several else ""
            raise LoadError(exc.message + hint) from None
    raise LoadError(f"there is no {wanted.file} at the root of its repository")


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Say in our words that the hub is away, or does not give a repository."""
    try:
        yield
    except HfHubHTTPError as exc:
        status = exc.response.status_code if exc.response is not None else "no answer"
        message = f"no LoRA {name!r} here, and the hub does not give it ({status})"
        raise UnknownLora(message) from exc
    except (LocalEntryNotFoundError, HFValidationError, httpx2.HTTPError, OSError) as exc:
        message = f"no LoRA {name!r} here, and it could not be fetched ({type(exc).__name__})"
        raise UnknownLora(message) from exc
