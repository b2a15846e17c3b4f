"""Ask the embedded model for every thing, and look up which thing its picture is nearest to.

    python -m training.evaluate --data DIR --out FILE.json [--limit N] [--threads 1]

A picture counts as right if, among all things in both styles on the picture's own background, the
nearest in 32 x 32 px (mean squared colour difference) is the thing asked for. That is generous to
blobs of the right colour and shape and blind to detail; chance is one in the number of things.
Prompts say thing, style and background; those held out of training are counted apart.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from training.captions import STYLE_WORDS
from training.compose import BACKGROUND_NAMES, Composer, Scene, is_held_out
from training.things import STYLES, THINGS

from fluxline import Engine

SIDE = 32  # px of the comparison
BATCH = 16


def scenes(limit: int | None) -> list[Scene]:
    """Every thing in both styles, on backgrounds that go round."""
    found = [
        Scene(thing=t, style=s, background=(3 * t + 5 * s) % len(BACKGROUND_NAMES))
        for t in range(len(THINGS))
        for s in range(len(STYLES))
    ]
    return found[:: max(1, len(found) // limit)] if limit else found


def prompt(scene: Scene) -> str:
    """The plain sentence for a scene."""
    name, style = THINGS[scene.thing].names[0], STYLE_WORDS[STYLES[scene.style]][0]
    return f"{style} drawing of {name} on a {BACKGROUND_NAMES[scene.background]} background"


def ranks(picture: torch.Tensor, scene: Scene, composer: Composer) -> tuple[int, bool]:
    """Where the asked thing ranks among all things (0: nearest), and whether the style is right."""
    candidates = [
        Scene(thing=t, style=s, background=scene.background)
        for t in range(len(THINGS))
        for s in range(len(STYLES))
    ]
    drawn = _small(composer.draw(candidates, (128, 128), None))
    distance = (drawn - _small(picture[None])).square().flatten(1).mean(1)
    by_thing = distance.view(len(THINGS), len(STYLES))
    nearest = by_thing.min(1).values
    rank = int((nearest < nearest[scene.thing]).sum())
    return rank, int(by_thing[scene.thing].argmin()) == scene.style


def evaluate(composer: Composer, *, steps: int, limit: int | None) -> dict[str, dict[str, float]]:
    """Shares of right pictures, for scenes seen in training and for those held out."""
    tally: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    with Engine("mini", device="cpu") as engine:
        for k, scene in enumerate(scenes(limit)):
            (image,) = engine.generate(prompt(scene), seed=k, steps=steps)
            pixels = np.asarray(Image.open(io.BytesIO(image.data)))
            picture = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
            kind = "held out" if is_held_out(scene) else "seen"
            tally[kind].append(ranks(picture, scene, composer))
    return {
        kind: {
            "pictures": len(rows),
            "thing nearest": round(float(np.mean([r == 0 for r, _ in rows])), 3),
            "thing in nearest five": round(float(np.mean([r < 5 for r, _ in rows])), 3),
            "style right": round(float(np.mean([style for _, style in rows])), 3),
        }
        for kind, rows in tally.items()
    }


def _small(pictures: torch.Tensor) -> torch.Tensor:
    return F.interpolate(pictures, size=(SIDE, SIDE), mode="area")


def main() -> None:
    """Evaluate at several numbers of steps and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 6, 8, 20])
    args = parser.parse_args()
    composer = Composer(args.data)
    table = {}
    for steps in args.steps:
        table[steps] = evaluate(composer, steps=steps, limit=args.limit)
        print(steps, table[steps], flush=True)
    args.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
