"""The judge: a small convolutional net that names what is in a box of a picture.

Trained on real sprites alone, in every combination, held out or not; nothing of it reaches the
models it judges. Its features also serve for a Fréchet distance between drawn and real pictures.

    python -m training.classifier --data DIR --out DIR --recipe cpu --minutes 8
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from training.compose import Composer
from training.recipe import RECIPES, Recipe
from training.scenes import SIZES, Figure, Scene
from training.things import BACKGROUND_NAMES, COLOUR_NAMES, PLACE_NAMES

SIDE = 64  # px of what it looks at
FEATURES = 192
MARGIN = 1.1  # of the box, so that some background is seen
BATCH = 64
RATE = 2e-3
NO_COLOUR = len(COLOUR_NAMES)


class Classifier(nn.Module):
    """Boxes `(B, 3, 64, 64)` to features, and from them to logits of thing, style and colour."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        widths = (32, 48, 96, FEATURES)
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.stages = nn.ModuleList(
            Stage(a, b) for a, b in zip(widths, (*widths[1:], FEATURES), strict=True)
        )
        self.thing = nn.Linear(FEATURES, recipe.things)
        self.style = nn.Linear(FEATURES, recipe.styles)
        self.colour = nn.Linear(FEATURES, NO_COLOUR + 1)

    def features(self, boxes: torch.Tensor) -> torch.Tensor:
        """Features `(B, 192)`."""
        x = self.stem(boxes)
        for stage in self.stages:
            x = stage(x)
        pooled: torch.Tensor = x.mean((2, 3))
        return pooled

    def forward(self, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits `(B, things)`, `(B, styles)`, `(B, 8)`: seven colours and none that has a name."""
        features = self.features(boxes)
        return self.thing(features), self.style(features), self.colour(features)


class Stage(nn.Module):
    """A residual block, then half the resolution."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(2))
        self.down = nn.Conv2d(width, out, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, width, h, w) to (B, out, h / 2, w / 2)."""
        y = self.first(F.silu(self.norms[0](x)))
        x = x + self.second(F.silu(self.norms[1](y)))
        halved: torch.Tensor = self.down(F.silu(x))
        return halved


def boxes_of(
    pictures: torch.Tensor, boxes: np.ndarray, rng: np.random.Generator | None
) -> torch.Tensor:
    """Cut boxes `(B, 3)` of centre and side in px out of pictures, as `(B, 3, 64, 64)`."""
    _, _, height, width = pictures.shape
    x, y, side = boxes.T.copy()
    side = side * MARGIN
    if rng is not None:
        side = side * rng.uniform(0.92, 1.1, len(side))
        x, y = (v + rng.uniform(-0.04, 0.04, len(side)) * side for v in (x, y))
    theta = torch.zeros(len(boxes), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = torch.tensor(side / width), torch.tensor(side / height)
    theta[:, 0, 2], theta[:, 1, 2] = (
        torch.tensor(2 * x / width - 1),
        torch.tensor(2 * y / height - 1),
    )
    grid = F.affine_grid(theta, [len(boxes), 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def any_scene(rng: np.random.Generator, composer: Composer) -> Scene:
    """A scene of any kind, held out or not, with everything said."""
    stock = composer.stock
    recipe = stock.recipe
    kind = rng.integers(4)  # alone twice as often
    things = [int(t) for t in rng.choice(recipe.things, 2 if kind == 3 else 1, replace=False)]
    styles = [int(rng.choice(np.flatnonzero(stock.available[t]))) for t in things]
    figures = []
    for thing, style in zip(things, styles, strict=True):
        is_recoloured = stock.coloured[thing] and rng.random() < 0.4
        colour = int(rng.integers(NO_COLOUR)) if is_recoloured else None
        figures.append(Figure(thing=thing, style=style, colour=colour))
    return Scene(
        figures=tuple(figures),
        background=int(rng.integers(len(BACKGROUND_NAMES))),
        place=int(rng.integers(len(PLACE_NAMES))) if kind == 2 else None,
        relation=str(rng.choice(("left", "above"))) if kind == 3 else None,
    )


def examples(
    composer: Composer, rng: np.random.Generator, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and their labels `(B, 3)`: thing, style, colour."""
    size = SIZES[int(rng.integers(len(SIZES)))]
    scenes = [any_scene(rng, composer) for _ in range(count)]
    chosen = [int(rng.integers(len(s.figures))) for s in scenes]
    boxes = np.array([s.boxes(*size)[k] for s, k in zip(scenes, chosen, strict=True)])
    seen = boxes_of(composer.draw(scenes, size, rng), boxes, rng)
    if rng.random() < 0.5:  # drawn pictures are softer than real ones
        seen = F.avg_pool2d(F.pad(seen, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    figures = [s.figures[k] for s, k in zip(scenes, chosen, strict=True)]
    labels = []
    for f in figures:
        colour = composer.stock.colour_of(f)
        labels.append([f.thing, f.style, NO_COLOUR if colour is None else colour])
    return seen + 0.03 * torch.randn_like(seen), torch.tensor(labels)


def train(composer: Composer, *, minutes: float, seed: int = 0) -> Classifier:
    """Train for so many minutes."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = Classifier(composer.stock.recipe).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    start, step, right = time.monotonic(), 0, []
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, step / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        seen, labels = examples(composer, rng, BATCH)
        logits = model(seen)
        losses = [F.cross_entropy(row, labels[:, k]) for k, row in enumerate(logits)]
        optimizer.zero_grad()
        (losses[0] + 0.5 * losses[1] + 0.5 * losses[2]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        right.append((logits[0].argmax(1) == labels[:, 0]).float().mean().item())
        if step % 100 == 0:
            print(f"step {step} {60 * minutes * done:.0f} s thing {np.mean(right):.3f}", flush=True)
            right.clear()
    return model.eval()


def load(path: Path, recipe: Recipe) -> Classifier:
    """Read a trained classifier."""
    model = Classifier(recipe)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


@torch.inference_mode()
def accuracy(model: Classifier, composer: Composer, seed: int = 99) -> dict[str, float]:
    """How often it is right on real pictures: the ceiling of every figure it measures."""
    rng = np.random.default_rng(seed)
    rights = []
    for _ in range(16):
        seen, labels = examples(composer, rng, BATCH)
        read = torch.stack([row.argmax(1) for row in model(seen)], 1)
        rights.append((read == labels).float())
    means = torch.cat(rights).mean(0).tolist()
    return dict(zip(("thing", "style", "colour"), (round(m, 3) for m in means), strict=True))


def main() -> None:
    """Train, report, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    composer = Composer(args.data, RECIPES[args.recipe])
    model = train(composer, minutes=args.minutes)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), args.out / "classifier.pt")
    print(accuracy(model, composer))


if __name__ == "__main__":
    main()
