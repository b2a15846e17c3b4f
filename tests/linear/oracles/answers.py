"""What torchao, bitsandbytes and hqq make of a weight: `answers.py FOLDER`, a process of its own.

Each of them, once it can be imported, is imported by half of what the other tests import.
"""

import sys
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from hqq.core.quantize import Quantizer
from safetensors.torch import load_file, save_file
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)


def main(folder: Path) -> None:
    """Read question.safetensors, write answer.safetensors."""
    asked = load_file(folder / "question.safetensors")
    weight, x = asked["weight"], asked["x"]
    answers = {
        "torchao int8": layer(weight, Int8WeightOnlyConfig()).weight.dequantize(),
        "torchao int8 product": layer(weight, Int8DynamicActivationInt8WeightConfig())(x),
        "torchao float8": layer(weight, Float8WeightOnlyConfig()).weight.dequantize(),
        "torchao nvfp4, row by row": torch.cat([nvfp4(row) for row in weight.split(1)]),
        "bitsandbytes nf4": nf4(weight, twice=False),
        "bitsandbytes nf4, double": nf4(weight, twice=True),
        "hqq": hqq(weight),
    }
    save_file({name: answer.contiguous() for name, answer in answers.items()},
              folder / "answer.safetensors")  # fmt: skip


def layer(weight: torch.Tensor, config: object) -> torch.nn.Linear:
    """Torchao's layer of a weight."""
    linear = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
    linear.weight.data.copy_(weight)
    linear.requires_grad_(False)
    quantize_(linear, config)
    return linear


def nvfp4(row: torch.Tensor) -> torch.Tensor:
    """Theirs scales a whole matrix once; ours each row."""
    scale = per_tensor_amax_to_scale(row.abs().amax())
    return NVFP4Tensor.to_nvfp4(row, per_tensor_scale=scale).dequantize(torch.float32)


def nf4(weight: torch.Tensor, *, twice: bool) -> torch.Tensor:
    """NF4 in blocks of 64, there and back."""
    packed, state = bnb.quantize_nf4(weight, blocksize=64, compress_statistics=twice)
    return bnb.dequantize_nf4(packed, state)


def hqq(weight: torch.Tensor) -> torch.Tensor:
    """HQQ in groups of 64, there and back."""
    options = {"nbits": 4, "group_size": 64, "axis": 1, "compute_dtype": torch.float32}
    packed, meta = Quantizer.quantize(weight, device="cpu", **options)
    return Quantizer.dequantize(packed, meta).float()


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
