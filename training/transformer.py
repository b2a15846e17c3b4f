"""Train the transformer on scenes drawn on the fly; the text encoders stay as `text.py` left them.

Flow matching as FLUX has it: x_sigma = (1 - sigma) x0 + sigma noise, and the model predicts
noise - x0. It trains Fluxline's own FluxTransformer. The run stops by the clock, resumes from its
checkpoint, and can be exported at any moment.

    python -m training.transformer --data DIR --out DIR --minutes 60 [--threads 1] [--device cpu]
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fluxline.models.flux1.latents import image_ids, text_ids
from fluxline.models.flux1.transformer import FluxConfig, FluxTransformer
from training import code, text
from training.captions import caption
from training.compose import Composer, random_scene
from training.muon import Muon

CONFIG = FluxConfig(
    in_channels=4 * code.CHANNELS,
    out_channels=4 * code.CHANNELS,
    depth_double=1,
    depth_single=4,
    head_dim=64,
    heads=3,
    text_dim=text.T5_WIDTH,
    pooled_dim=text.CLIP_WIDTH,
    guidance=False,
    axes=(16, 24, 24),
)
SIZE = (128, 128)  # px
ADAM_RATE, MUON_RATE = 1.5e-3, 2e-2
WARM_UP = 300  # steps
EMA = 0.999
PURE_NOISE_SHARE = 0.375  # of the rows at sigma 1, where the prompt alone decides,
PURE_NOISE_UNTIL = 0.6  # in this share of the run


def untrained() -> FluxTransformer:
    """A transformer whose blocks and output start as zero (adaLN-Zero)."""
    model = FluxTransformer(CONFIG)
    for layer in (model.modulation, model.image_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


class Run:
    """One training run: model, average, optimisers, clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.minutes, self.batch, self.device = args.minutes, args.batch, args.device
        self.composer = Composer(args.data, args.device)
        self.code = code.load(args.out / "code.pt")
        self.encoders = text.build().to(args.device).eval().requires_grad_(False)
        self.encoders.load_state_dict(torch.load(args.out / "text.pt", weights_only=True))
        self.model = untrained().to(args.device)
        matrices = {n: p for n, p in self.model.named_parameters() if _is_matrix(n, p)}
        others = [p for n, p in self.model.named_parameters() if n not in matrices]
        self.muon = Muon(list(matrices.values()))
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.average = {n: v.detach().clone() for n, v in self.model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.checkpoint = args.out / "transformer.pt"
        if self.checkpoint.exists():
            self._load()
        self.rng = np.random.default_rng([args.seed, self.step])
        ids = torch.cat((text_ids(text.T5_LENGTH), image_ids(SIZE[1] // 8, SIZE[0] // 8)))
        self.rope = self.model.rope(ids.to(args.device))[None]

    @property
    def progress(self) -> float:
        """Share of the time that is spent, 0 to 1."""
        return min(1.0, self.seconds / (60 * self.minutes))

    def advance(self) -> float:
        """Take one step of both optimisers; return the loss."""
        loss = self._loss()
        self.adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = min(1, (self.step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * self.progress))
        for group in self.adam.param_groups:
            group["lr"] = ADAM_RATE * rate
        self.adam.step()
        self.muon.step(MUON_RATE * rate)
        self.step += 1
        keep = min(EMA, (self.step + 1) / (self.step + 30))
        with torch.no_grad():
            now = [v.detach() for v in self.model.state_dict().values()]
            torch._foreach_lerp_(list(self.average.values()), now, 1 - keep)
        return loss.item()

    def _loss(self) -> torch.Tensor:
        scenes = [random_scene(self.rng) for _ in range(self.batch)]
        states, pooled = self.encoders([caption(scene, self.rng)[0] for scene in scenes])
        x0 = code.pack(self.code.encode(self.composer.draw(scenes, SIZE, None)))
        sigma = torch.sigmoid(0.4 + 1.15 * torch.randn(self.batch, device=self.device))
        if self.progress < PURE_NOISE_UNTIL:
            sigma[: int(PURE_NOISE_SHARE * self.batch)] = 1.0
        noise = torch.randn_like(x0)
        x = torch.lerp(x0, noise, sigma[:, None, None])
        velocity = self.model(
            x, self.model.embed_text(states), self.model.modulate(sigma, None, pooled), self.rope
        )
        return (velocity - (noise - x0)).square().mean()

    def save(self) -> None:
        """Write everything needed to go on, in one replacement."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "adam": self.adam.state_dict(),
            "muon": self.muon.state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True, map_location=self.device)
        self.average = state["average"]
        if "model" not in state:  # written by resume.py: a new run from old weights
            self.model.load_state_dict(self.average)
            return
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.muon.load(state["muon"])
        self.step, self.seconds = state["step"], state["seconds"]


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.dim() == 2 and "_blocks." in name and "qk_norm" not in name


def main() -> None:
    """Train until the time is spent; the time counts on over resumed runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = Run(args)
    last, losses = time.monotonic(), []
    while run.progress < 1:
        losses.append(run.advance())
        now = time.monotonic()
        run.seconds, last = run.seconds + now - last, now
        if run.step % 100 == 0:
            samples = run.step * run.batch
            print(f"step {run.step} samples {samples} {run.seconds:.0f} s "
                  f"loss {np.mean(losses):.4f}", flush=True)  # fmt: skip
            losses.clear()
        if run.step % 400 == 0:
            run.save()
    run.save()


if __name__ == "__main__":
    main()
