"""Teach the transformer guidance as an input, as FLUX.1-dev has it.

The trained model is the teacher: what it would draw with classifier-free guidance of strength g,
u + g (c - u) from its conditional and unconditional velocities, the student draws in one row, told
g through its guidance embedding. The teacher is frozen: a student that guides itself drifts away.
Source: Meng et al. 2023, "On Distillation of Guided Diffusion Models".

    python -m training.guide --data DIR --run RUN --steps 1500     # RUN/guided, resumable
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fluxline.models.flux1.transformer import FluxConfig, FluxTransformer
from training import checkpoint, code, text
from training.captions import caption
from training.compose import Composer
from training.painter import Painter
from training.recipe import RECIPES
from training.scenes import random_scene, random_size

STRONGEST = 4.0  # guidance is learned from 1 to this
PLAIN_SHARE = 0.25  # of the rows at guidance 1
RATE = 3e-4
EMA = 0.998


def guided(config: FluxConfig) -> FluxConfig:
    """The same model with a guidance embedding."""
    return dataclasses.replace(config, guidance=True)


def student_of(teacher: FluxTransformer) -> FluxTransformer:
    """A copy that begins by ignoring the guidance it is told."""
    student = FluxTransformer(guided(teacher.config))
    student.load_state_dict(teacher.state_dict(), strict=False)
    assert student.guidance_in is not None
    nn.init.zeros_(student.guidance_in.out.weight)
    nn.init.zeros_(student.guidance_in.out.bias)
    return student


class Lesson(nn.Module):
    """Teacher and student over the same noisy latents."""

    def __init__(self, painter: Painter) -> None:
        super().__init__()
        self.painter = painter.eval().requires_grad_(False)
        self.student = student_of(painter.transformer)

    def forward(
        self,
        tokens: tuple[torch.Tensor, torch.Tensor],
        nothing: tuple[torch.Tensor, torch.Tensor],
        x0: torch.Tensor,
        sigma: torch.Tensor,
        guidance: torch.Tensor,
        rope: torch.Tensor,
    ) -> torch.Tensor:
        """Loss of captions and of empty captions (B, L), latents (B, N, 64), sigma and g (B,)."""
        x = torch.lerp(x0, torch.randn_like(x0), sigma[:, None, None])
        teacher = self.painter.transformer
        with torch.no_grad():
            long, short = (torch.cat(pair) for pair in zip(tokens, nothing, strict=True))
            states, pooled = self.painter.encoders(long, short)
            both = teacher(
                torch.cat((x, x)),
                teacher.embed_text(states),
                teacher.modulate(torch.cat((sigma, sigma)), None, pooled),
                rope,
            )
            told, untold = both.chunk(2)
            target = untold + guidance[:, None, None] * (told - untold)
        states, pooled = states[: len(x)], pooled[: len(x)]
        velocity = self.student(
            x,
            self.student.embed_text(states),
            self.student.modulate(sigma, guidance, pooled),
            rope,
        )
        return (velocity - target).square().mean()


def main() -> None:
    """Teach for so many steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    recipe, device = RECIPES[args.recipe], args.device
    composer = Composer(args.data, recipe, device)
    latent_code = code.load(args.run / "code.pt")
    painter = Painter(text.untrained(args.run), recipe)
    painter.load_state_dict(checkpoint.read(args.run / "transformer")["average"])
    lesson = Lesson(painter).to(device)
    student, first, target = lesson.student, 0, args.run / "guided"
    average = {n: v.detach().clone() for n, v in student.state_dict().items()}
    if target.exists():
        saved = checkpoint.read(target, device)
        student.load_state_dict(saved["model"])
        average, first = saved["average"], saved["step"]
    loss_of = torch.compile(lesson) if args.compile else lesson
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, betas=(0.9, 0.99), fused=True)
    rng, stock = np.random.default_rng([1, first]), composer.stock
    losses, start = [], time.monotonic()
    for step in range(first, args.steps):
        rate = RATE * min(1, (step - first + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * step / args.steps))
        size = random_size(rng, recipe)
        scenes = [random_scene(rng, stock) for _ in range(args.batch)]
        tokens = painter.encoders.tokens([caption(s, rng, stock) for s in scenes])
        nothing = painter.encoders.tokens([""] * args.batch)
        x0 = code.pack(latent_code.encode(composer.draw(scenes, size, None)))
        sigma = torch.sigmoid(0.4 + 1.15 * torch.randn(args.batch, device=device))
        sigma[: args.batch // 6] = 1.0
        guidance = 1 + (STRONGEST - 1) * torch.rand(args.batch, device=device)
        guidance[torch.rand(args.batch, device=device) < PLAIN_SHARE] = 1.0
        loss = loss_of(tokens, nothing, x0, sigma, guidance, painter.rope(size))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        keep = min(EMA, (step - first + 1) / (step - first + 20))
        with torch.no_grad():
            now = [v.detach() for v in student.state_dict().values()]
            torch._foreach_lerp_(list(average.values()), now, 1 - keep)
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            print(f"step {step + 1} {time.monotonic() - start:.0f} s loss {np.mean(losses):.4f}",
                  flush=True)  # fmt: skip
            losses.clear()
            checkpoint.write(
                target, {"model": student.state_dict(), "average": average, "step": step + 1}
            )


if __name__ == "__main__":
    main()
