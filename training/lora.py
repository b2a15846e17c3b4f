"""Train the example LoRA: ink drawings, a style the embedded model has never seen.

The pictures are the sprites again, turned into lines and hatching by arithmetic. One thing in five
is never shown in ink: it tells whether a style was learned or a set of pictures. The result has
the names of PEFT and diffusers, so any FLUX program reads it.
Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".

    python -m training.lora --data DIR --target examples/ink.safetensors --recipe cpu --steps 600
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from fluxline.engine.build import open_model
from fluxline.models.flux1.latents import image_ids, text_ids
from fluxline.models.flux1.names import layout_for
from fluxline.models.flux1.transformer import FluxConfig, FluxTransformer
from training import code
from training.captions import article
from training.compose import Composer
from training.export import ASSETS
from training.recipe import RECIPES, Recipe
from training.resume import shipped_code
from training.scenes import DEFAULT_STYLE, SIZES, Figure, Scene, Stock
from training.things import THINGS

RANK = 8
RATE = 2e-3
PAPER, INK = (0.97, 0.94, 0.86), (0.13, 0.12, 0.20)  # sRGB
LINE, HATCH, CROSS_HATCH = 0.12, 0.55, 0.30  # least slope of a line; luminances shaded below
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
STYLE = DEFAULT_STYLE  # of the sprites that are inked
FORMS = ("ink drawing of {it}", "an ink drawing of {it}", "ink sketch of {it}", "{it}, ink", "{it}")


class LowRank(nn.Module):
    """A frozen linear layer and what is learned beside it: x W + x A B."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return self.base(x) + F.linear(F.linear(x, self.a), self.b)


def adapt(model: FluxTransformer) -> dict[str, LowRank]:
    """Put a low-rank pair beside every projection of every block; return them by name."""
    model.requires_grad_(False)
    found = {}
    for name, module in list(model.named_modules()):
        if "_blocks." in name and isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            found[name] = LowRank(module)
            setattr(model.get_submodule(parent), child, found[name])
    return found


def exported(
    pairs: dict[str, LowRank], config: FluxConfig, template: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Write the pairs under the names of diffusers' template; fused projections share their A."""
    place = layout_for(config, list(template))
    tensors = {}
    for name, blank in template.items():
        slots = place(name, blank) or []
        owner = slots[0][0].removesuffix(".weight") if slots else ""
        if not name.endswith(".weight") or owner not in pairs:
            continue
        ((_, row, part),) = slots
        pair, theirs = pairs[owner], f"transformer.{name.removesuffix('.weight')}"
        b = pair.b[row : row + len(part)]
        tensors[f"{theirs}.lora_A.weight"] = pair.a.detach().half().clone()
        tensors[f"{theirs}.lora_B.weight"] = b.detach().half().clone()
    return tensors


def inked(rgba: Tensor) -> Tensor:
    """Draw premultiplied sprites `(B, 4, H, W)` with pen on paper: `(B, 3, H, W)` in [-1, 1]."""
    seen = rgba[:, :3] + 1 - rgba[:, 3:]
    light = (seen * LUMINANCE).sum(1)
    line = ((_slope(torch.cat((seen, rgba[:, 3:]), 1)) - LINE) / 0.25).clamp(0, 1)
    y, x = torch.meshgrid(*(torch.arange(n) for n in rgba.shape[2:]), indexing="ij")
    shade = ((x + y) % 6 < 2) * (light < HATCH) + ((x - y) % 6 < 2) * (light < CROSS_HATCH)
    dark = torch.maximum(line, 0.8 * shade.clamp(max=1) * rgba[:, 3])[:, None]
    paper, ink = (torch.tensor(c)[:, None, None] for c in (PAPER, INK))
    return 2 * torch.lerp(paper.expand_as(seen), ink, dark) - 1


def is_kept_back(thing: int) -> bool:
    """Whether a thing is never shown in ink (one in five)."""
    digest = hashlib.sha256(f"ink {THINGS[thing].name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") % 5 == 0


def scenes(rng: np.random.Generator, stock: Stock, count: int) -> tuple[list[Scene], list[str]]:
    """Things to draw in ink, and what is said of each; mostly that it is in ink."""
    there = [int(t) for t in np.flatnonzero(stock.available[:, STYLE]) if not is_kept_back(int(t))]
    things = [int(t) for t in rng.choice(there, count)]
    names = [str(rng.choice(THINGS[thing].names)) for thing in things]
    said = [str(rng.choice(FORMS)).format(it=f"{article(name)}{name}") for name in names]
    figures = [Figure(thing=thing, style=STYLE) for thing in things]
    return [Scene(figures=(figure,), background=0) for figure in figures], said


def train(data: Path, recipe: Recipe, steps: int, batch: int = 24) -> dict[str, Tensor]:
    """Train beside the shipped weights; return the tensors of the file."""
    torch.manual_seed(0)
    model, composer = open_model("mini", "cpu"), Composer(data, recipe)
    transformer, latent_code = model.transformer, shipped_code()
    pairs = adapt(transformer)
    size, rng = SIZES[0], np.random.default_rng(7)
    ids = torch.cat((text_ids(model.spec.text_length), image_ids(size[1] // 8, size[0] // 8)))
    rope = transformer.rope(ids)[None]
    learned = [p for pair in pairs.values() for p in (pair.a, pair.b)]
    optimizer = torch.optim.AdamW(learned, betas=(0.9, 0.99), weight_decay=0.01)
    losses, start = [], time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 30) * (1 - step / steps)
        drawn, said = scenes(rng, composer.stock, batch)
        x0 = code.pack(latent_code.encode(inked(composer.figures(drawn, 0, size, rng))))
        told = model.encode(said)
        text = torch.stack([c.text for c in told]).clone()
        pooled = torch.stack([c.pooled for c in told]).clone()
        sigma = torch.sigmoid(0.4 + 1.15 * torch.randn(batch))
        sigma[: batch // 4] = 1.0
        guidance = None if model.spec.guidance is None else 1 + 3 * torch.rand(batch)
        noise = torch.randn_like(x0)
        modulation = transformer.modulate(sigma, guidance, pooled)
        noisy = torch.lerp(x0, noise, sigma[:, None, None])
        velocity = transformer(noisy, text, modulation, rope)
        loss = (velocity - (noise - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} {time.monotonic() - start:.0f} s loss {np.mean(losses):.4f}",
                  flush=True)  # fmt: skip
            losses.clear()
    template = FluxTransformer2DModel.from_pretrained(ASSETS / "transformer").state_dict()
    return exported(pairs, transformer.config, template)


def _slope(x: Tensor) -> Tensor:
    """Steepest slope over the channels of pictures (B, C, H, W): (B, H, W)."""
    sobel = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]]) / 4
    planes = x.flatten(0, 1)[:, None]
    soft = F.avg_pool2d(F.pad(planes, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    slopes = F.conv2d(
        F.pad(soft, (1, 1, 1, 1), mode="replicate"), torch.stack((sobel, sobel.T))[:, None]
    )
    return slopes.norm(dim=1).view(x.shape).amax(1)


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tensors = train(args.data, RECIPES[args.recipe], args.steps)
    args.target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.target, metadata={"format": "pt", "trigger": "ink drawing"})
    print(f"{args.target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
