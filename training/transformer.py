"""Train the transformer, and the text encoders with it, on scenes drawn on the fly.

A run is so many steps long, may be done in legs of so many minutes, resumes from its checkpoint,
and can be exported at any moment. With every checkpoint it writes a row of pictures, RUN/samples.
With --compile a sample takes two thirds of the time once a minute or two of compiling is over.

    python -m training.transformer --data DIR --out DIR --steps 7500 [--minutes 9] [--compile]
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training import checkpoint, code, samples, text
from training.captions import caption
from training.compose import Composer
from training.muon import Muon
from training.painter import Painter
from training.recipe import RECIPES
from training.scenes import random_scene, random_size

ADAM_RATE, MUON_RATE, TEXT_RATE = 1.5e-3, 2e-2, 5e-4
WARM_UP = 300  # steps
EMA = 0.999
PURE_NOISE_SHARE = (0.375, 0.125)  # of the rows at sigma 1, where the prompt alone decides:
PURE_NOISE_UNTIL = 0.6  # the first in this share of the run, then the second


class Run:
    """One training run: model, average, optimisers, clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.steps, self.device = args.steps, args.device
        self.batch = args.batch or RECIPES[args.recipe].batch
        self.recipe = RECIPES[args.recipe]
        self.composer = Composer(args.data, self.recipe, args.device)
        self.code = code.load(args.out / "code.pt")
        self.model = Painter(text.load(args.out).train(), self.recipe).to(args.device)
        self.loss = torch.compile(self.model) if args.compile else self.model
        matrices = {n: p for n, p in self.model.named_parameters() if _is_matrix(n, p)}
        words = {n: p for n, p in self.model.named_parameters() if n.startswith("encoders.")}
        known = matrices.keys() | words.keys()
        others = [p for n, p in self.model.named_parameters() if n not in known]
        self.muon = Muon(list(matrices.values()))
        groups = [{"params": others, "rate": ADAM_RATE}]
        groups += [{"params": list(words.values()), "rate": TEXT_RATE}]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.average = {n: v.detach().clone() for n, v in self.model.state_dict().items()}
        self.step = 0
        self.out, self.checkpoint = args.out, args.out / "transformer"
        if self.checkpoint.exists():
            self._load()
        self.rng = np.random.default_rng([args.seed, self.step])
        torch.manual_seed(args.seed + self.step)

    @property
    def progress(self) -> float:
        """Share of the steps that are taken, 0 to 1."""
        return min(1.0, self.step / self.steps)

    def advance(self) -> float:
        """Take one step of both optimisers; return the loss."""
        loss = self._loss()
        self.adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = min(1, (self.step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * self.progress))
        for group in self.adam.param_groups:
            group["lr"] = group["rate"] * rate
        self.adam.step()
        self.muon.step(MUON_RATE * rate)
        self.step += 1
        keep = min(EMA, (self.step + 1) / (self.step + 30))
        with torch.no_grad():
            now = [v.detach() for v in self.model.state_dict().values()]
            torch._foreach_lerp_(list(self.average.values()), now, 1 - keep)
        return loss.item()

    def _loss(self) -> torch.Tensor:
        stock, size = self.composer.stock, random_size(self.rng, self.recipe)
        scenes = [random_scene(self.rng, stock) for _ in range(self.batch)]
        texts = [caption(scene, self.rng, stock) for scene in scenes]
        tokens = self.model.encoders.tokens(texts)
        x0 = code.pack(self.code.encode(self.composer.draw(scenes, size, None)))
        sigma = torch.sigmoid(0.4 + 1.15 * torch.randn(self.batch, device=self.device))
        share = PURE_NOISE_SHARE[self.progress >= PURE_NOISE_UNTIL]
        sigma[: int(share * self.batch)] = 1.0
        return self.loss(tokens, x0, sigma, self.model.rope(size))

    def save(self) -> None:
        """Write everything needed to go on, and what it draws now."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "adam": self.adam.state_dict(),
            "muon": self.muon.state(),
            "step": self.step,
        }
        checkpoint.write(self.checkpoint, state)
        shown = Painter(self.model.encoders.twin(), self.recipe).to(self.device)
        shown.load_state_dict(self.average)
        (self.out / "samples").mkdir(exist_ok=True)
        samples.row(shown, self.code).save(self.out / "samples" / f"{self.step:06}.png")

    def _load(self) -> None:
        state = checkpoint.read(self.checkpoint, self.device)
        self.average = state["average"]
        if "model" not in state:  # written by resume.py: a new run from old weights
            self.model.load_state_dict(self.average)
            return
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.muon.load(state["muon"])
        self.step = state["step"]


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.dim() == 2 and "_blocks." in name and "qk_norm" not in name


def main() -> None:
    """Train until the steps are taken, or this leg's minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True, help="of the whole run")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this leg")
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--batch", type=int, help="the recipe's if absent")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run, losses, start = Run(args), [], time.monotonic()
    while run.progress < 1 and (seconds := time.monotonic() - start) < 60 * args.minutes:
        losses.append(run.advance())
        if run.step % 100 == 0:
            print(f"step {run.step} samples {run.step * run.batch} {seconds:.0f} s "
                  f"loss {np.mean(losses):.4f}", flush=True)  # fmt: skip
            losses.clear()
        if run.step % 400 == 0:
            run.save()
    run.save()


if __name__ == "__main__":
    main()
