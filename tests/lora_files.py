"""Random LoRAs in the spellings of the programs that train them."""

from collections.abc import Iterable, Mapping

import torch
from peft.tuners.lokr.layer import factorization
from torch import Tensor

from fluxline.models.flux1.transformer import FluxConfig

Sizes = Mapping[str, tuple[int, int]]  # layer -> (in, out)


def bfl_layers(config: FluxConfig) -> dict[str, tuple[int, int]]:
    """Every linear layer of a FLUX.1 by BFL's name."""
    d = config.hidden
    sizes = {
        "img_in": (config.in_channels, d),
        "txt_in": (config.text_dim, d),
        "time_in.in_layer": (256, d),
        "time_in.out_layer": (d, d),
        "vector_in.in_layer": (config.pooled_dim, d),
        "vector_in.out_layer": (d, d),
        "final_layer.linear": (d, config.out_channels),
        "final_layer.adaLN_modulation.1": (d, 2 * d),
    }
    if config.guidance:
        sizes |= {"guidance_in.in_layer": (256, d), "guidance_in.out_layer": (d, d)}
    for i in range(config.depth_double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            sizes |= {
                f"{block}_attn.qkv": (d, 3 * d),
                f"{block}_attn.proj": (d, d),
                f"{block}_mlp.0": (d, 4 * d),
                f"{block}_mlp.2": (4 * d, d),
                f"{block}_mod.lin": (d, 6 * d),
            }
    for i in range(config.depth_single):
        block = f"single_blocks.{i}"
        sizes |= {
            f"{block}.linear1": (d, 7 * d),
            f"{block}.linear2": (5 * d, d),
            f"{block}.modulation.lin": (d, 3 * d),
        }
    return sizes


def xlabs_layers(config: FluxConfig) -> dict[str, tuple[int, int]]:
    """What x-labs' trainer puts adapters beside."""
    d = config.hidden
    sizes = {}
    for i in range(config.depth_double):
        for n in (1, 2):
            sizes[f"double_blocks.{i}.processor.qkv_lora{n}"] = (d, 3 * d)
            sizes[f"double_blocks.{i}.processor.proj_lora{n}"] = (d, d)
    for i in range(config.depth_single):
        sizes[f"single_blocks.{i}.processor.qkv_lora"] = (d, 3 * d)
        sizes[f"single_blocks.{i}.processor.proj_lora"] = (5 * d, d)
    return sizes


def linear_layers(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Every linear layer of a model by its own name."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def random_lora(
    sizes: Sizes,
    *,
    prefix: str = "",
    ends: tuple[str, str] = (".lora_A.weight", ".lora_B.weight"),
    is_flat: bool = False,
    alpha: float | None = None,
    without_alpha: Iterable[str] = (),
    rank: int = 4,
    by: float = 0.2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A LoRA that matters. by: how much of what a layer reads its answer changes."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (width, height) in sizes.items():
        spelled = prefix + (name.replace(".", "_") if is_flat else name)
        tensors[spelled + ends[0]] = torch.randn(rank, width, generator=g) / width**0.5
        tensors[spelled + ends[1]] = by * torch.randn(height, rank, generator=g) / rank**0.5
        if alpha is not None and name not in without_alpha:
            tensors[f"{spelled}.alpha"] = torch.tensor(alpha)
    return tensors


def random_lokr(
    sizes: Sizes,
    *,
    prefix: str = "",
    is_flat: bool = False,
    alpha: float | None = None,
    factor: int = 4,
    rank: int = 8,
    decomposes_both: bool = False,
    by: float = 0.2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A LoKr that matters, its factors of low rank where PEFT would have them so.

    factor: of how many the left one is, of both sides. by: how much of what a layer reads its
    answer changes.
    """
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (width, height) in sizes.items():
        spelled = prefix + (name.replace(".", "_") if is_flat else name)
        (a, c), (b, d) = factorization(height, factor), factorization(width, factor)
        left, right = torch.randn(a, b, generator=g) / b**0.5, by * torch.randn(c, d, generator=g)
        for number, (h, w), matrix, may in (
            (1, (a, b), left, decomposes_both),
            (2, (c, d), right / d**0.5, True),
        ):
            if may and rank < max(h, w) / 2:
                pair = torch.randn(h, rank, generator=g), torch.randn(rank, w, generator=g)
                scale = (by if number == 2 else 1.0) / (rank * w) ** 0.5
                tensors[f"{spelled}.lokr_w{number}_a"] = scale * pair[0]
                tensors[f"{spelled}.lokr_w{number}_b"] = pair[1]
            else:
                tensors[f"{spelled}.lokr_w{number}"] = matrix
        if alpha is not None:
            tensors[f"{spelled}.alpha"] = torch.tensor(alpha)
    return tensors
