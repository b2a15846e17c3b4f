"""Write a diffusers folder's transformer as a GGUF file: BFL's names, as they are about."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from fluxline.linear.gguf import GGUF_KINDS
from tests.models.flux1.bfl_export import bfl_names

WRITABLE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # the package writes these


def save_as_gguf(
    folder: Path,
    file: Path,
    kind_of: Callable[[str], str],
    named: Callable[[dict[str, Tensor]], dict[str, Tensor]] = bfl_names,
) -> Path:
    """Write folder's transformer, each matrix of a block in the kind that `kind_of` its name.

    named: into BFL's names, which are FLUX.1's if nobody says.
    """
    theirs = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    writer = gguf.GGUFWriter(file, "flux")
    for name, tensor in named(theirs).items():
        values = tensor.float().numpy()
        if values.ndim == 2 and "_blocks." in name:
            kind = gguf.GGMLQuantizationType[kind_of(name)]
            writer.add_tensor(name, _packed(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values if values.ndim == 1 else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _packed(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Blocks of the values; of kinds that nothing here writes, blocks of about their size."""
    if kind.name in WRITABLE:
        return gguf.quants.quantize(values, kind)
    blocks = GGUF_KINDS[kind.name]
    rows, columns = values.shape
    raw = np.random.default_rng(0).integers(
        0, 256, (rows, columns // blocks.size, blocks.bytes), dtype=np.uint8
    )
    step = np.float16(0.3 * values.std() / 300).view(np.uint16)  # of scales up to 63, codes to 31
    for at in {"Q6_K": (208,), "Q3_K": (108,), "Q2_K": (80, 82)}.get(kind.name, (0, 2)):
        raw[..., at], raw[..., at + 1] = step & 255, step >> 8
    return raw.reshape(rows, -1)
