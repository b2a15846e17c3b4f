"""Ask the embedded model for every thing, and look up which thing its picture is nearest to.

    python -m training.evaluate --data DIR --out FILE.json [--limit N] [--steps 4 6]

A picture counts as right if, among all things in both styles on the picture's own background, the
nearest in 32 x 32 px (mean squared colour difference) is the thing asked for. That is generous to
blobs of the right colour and shape and blind to detail; chance is one in the number of things.
Prompts say thing, style and background; those held out of training are counted apart. A background
is right if the middle colour of the picture's rim is nearest to the one asked for.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fluxline import Engine
from training.captions import STYLE_WORDS
from training.compose import BACKGROUND_NAMES, Composer, Scene, is_held_out
from training.things import STYLES, THINGS

SIDE = 32  # px of the comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is right in a picture; rank 0: no other thing is nearer than the one asked for."""

    rank: int
    is_style_right: bool
    is_background_right: bool


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
    name, style = THINGS[scene.thing].name, STYLE_WORDS[STYLES[scene.style]][0]
    return f"{style} drawing of {name} on a {BACKGROUND_NAMES[scene.background]} background"


class Judge:
    """Compares pictures with what they should have been."""

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self._drawn: dict[int, torch.Tensor] = {}  # background -> (N S, 3, 32, 32)

    def verdict(self, picture: torch.Tensor, scene: Scene) -> Verdict:
        """Judge a picture `(3, 128, 128)` in [-1, 1]."""
        distance = (self._candidates(scene.background) - _small(picture[None])).square()
        by_thing = distance.flatten(1).mean(1).view(len(THINGS), len(STYLES))
        nearest = by_thing.min(1).values
        rim = torch.cat((picture[:, :3].flatten(1), picture[:, -3:].flatten(1)), 1).median(1).values
        ground = (self.composer.colours - rim).square().sum(1).argmin()
        return Verdict(
            rank=int((nearest < nearest[scene.thing]).sum()),
            is_style_right=int(by_thing[scene.thing].argmin()) == scene.style,
            is_background_right=int(ground) == scene.background,
        )

    def _candidates(self, background: int) -> torch.Tensor:
        if background not in self._drawn:
            scenes = [
                Scene(thing=t, style=s, background=background)
                for t in range(len(THINGS))
                for s in range(len(STYLES))
            ]
            self._drawn[background] = _small(self.composer.draw(scenes, (128, 128), None))
        return self._drawn[background]


def evaluate(composer: Composer, *, steps: int, limit: int | None) -> dict[str, dict[str, float]]:
    """Shares of right pictures, for scenes seen in training and for those held out."""
    tally: dict[str, list[Verdict]] = defaultdict(list)
    judge = Judge(composer)
    with Engine("mini", device="cpu") as engine:
        for k, scene in enumerate(scenes(limit)):
            (image,) = engine.generate(prompt(scene), seed=k, steps=steps)
            pixels = np.array(Image.open(io.BytesIO(image.data)))
            picture = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
            kind = "held out" if is_held_out(scene) else "seen"
            tally[kind].append(judge.verdict(picture, scene))
    return {
        kind: {
            "pictures": len(rows),
            "thing nearest": _share(v.rank == 0 for v in rows),
            "thing in nearest five": _share(v.rank < 5 for v in rows),
            "style right": _share(v.is_style_right for v in rows),
            "background right": _share(v.is_background_right for v in rows),
        }
        for kind, rows in tally.items()
    }


def _share(truths: Iterable[bool]) -> float:
    return round(float(np.mean(list(truths))), 3)


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
