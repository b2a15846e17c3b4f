"""Ask the embedded model the evaluation's questions and let the classifier read its answers.

    python -m training.evaluate --data DIR --classifier FILE --out FILE.json
        [--model mini] [--steps 8] [--guidance 1 2 4] [--every 5]

The thing is right if the classifier names it, of all things; of two, both, each in its place. Its
own errors count against the model: the ceiling is in the table. A background is right if the middle
colour of the picture's rim is nearest to the one asked for. The distance is Fréchet's between the
classifier's features of the drawn pictures and of the real ones of the same scenes.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fluxline import Engine
from fluxline.engine.ticket import Ticket, new_request
from training import classifier, questions
from training.compose import Composer
from training.recipe import RECIPES
from training.scenes import Scene

SIZE = (128, 128)
IN_FLIGHT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is right in a picture."""

    thing: bool  # or both
    style: bool
    colour: bool | None  # None: no colour was asked for
    background: bool


class Judge:
    """Reads pictures."""

    def __init__(self, composer: Composer, model: classifier.Classifier) -> None:
        self.composer, self.model = composer, model

    @torch.inference_mode()
    def read(self, picture: torch.Tensor, scene: Scene) -> Answer:
        """Judge a picture `(3, 128, 128)` in [-1, 1]."""
        boxes = np.array(scene.boxes(*SIZE))
        seen = classifier.boxes_of(picture.expand(len(boxes), -1, -1, -1), boxes, None)
        things, styles, colours = (row.argmax(1).tolist() for row in self.model(seen))
        asked = scene.figures
        rim = torch.cat((picture[:, :3].flatten(1), picture[:, -3:].flatten(1)), 1).median(1).values
        ground = (self.composer.colours - rim).square().sum(1).argmin()
        is_coloured = asked[0].colour is not None
        return Answer(
            thing=things == [f.thing for f in asked],
            style=styles == [f.style for f in asked],
            colour=colours[0] == asked[0].colour if is_coloured else None,
            background=int(ground) == scene.background,
        )

    @torch.inference_mode()
    def features(self, pictures: torch.Tensor) -> np.ndarray:
        """Features of whole pictures `(B, 3, 128, 128)`."""
        boxes = np.tile([64.0, 64.0, 128 / classifier.MARGIN], (len(pictures), 1))
        read: np.ndarray = self.model.features(classifier.boxes_of(pictures, boxes, None)).numpy()
        return read


def drawn(
    engine: Engine, asked: list[tuple[str, str, Scene]], steps: int, guidance: float | None
) -> list[torch.Tensor]:
    """The pictures of all prompts; the seed of a question is its number."""
    pictures: list[torch.Tensor] = []
    waiting: list[Ticket] = []
    params = {"steps": steps} | ({} if guidance is None else {"guidance": guidance})
    for seed, (_, prompt, _) in enumerate(asked):
        waiting.append(engine.submit(new_request(prompt, seed=seed, params=params)))
        if len(waiting) == IN_FLIGHT:
            pictures += [_picture(ticket) for ticket in waiting]
            waiting.clear()
    return pictures + [_picture(ticket) for ticket in waiting]


def table(answers: dict[str, list[Answer]]) -> dict[str, dict[str, float]]:
    """Shares of right answers by kind."""
    rows = {}
    for kind, given in answers.items():
        rows[kind] = {
            "pictures": len(given),
            "thing": _share([a.thing for a in given]),
            "style": _share([a.style for a in given]),
            "background": _share([a.background for a in given]),
        }
        if coloured := [a.colour for a in given if a.colour is not None]:
            rows[kind]["colour"] = _share(coloured)
    return rows


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance between two clouds of features, taken as Gaussians."""
    gap = np.square(one.mean(0) - other.mean(0)).sum()
    a, b = np.cov(one.T), np.cov(other.T)
    values = np.linalg.eigvals(a @ b)
    root = np.sqrt(np.clip(values.real, 0, None)).sum()
    return float(gap + np.trace(a) + np.trace(b) - 2 * root)


def _picture(ticket: Ticket) -> torch.Tensor:
    (image,) = ticket.result()
    pixels = np.array(Image.open(io.BytesIO(image.data)))
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def _share(truths: list[bool]) -> float:
    return round(float(np.mean(truths)), 3)


def main() -> None:
    """Evaluate at several numbers of steps and guidances, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="first")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, nargs="+", default=[8])
    parser.add_argument("--guidance", type=float, nargs="+", default=[None])
    parser.add_argument("--every", type=int, default=1, help="ask one question of so many")
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    composer = Composer(args.data, recipe)
    judge = Judge(composer, classifier.load(args.classifier, recipe))
    asked = questions.read(args.recipe)[:: args.every]
    real = judge.features(composer.draw([s for _, _, s in asked], SIZE, None))
    found: dict[str, object] = {"ceiling": classifier.accuracy(judge.model, composer)}
    with Engine(args.model, device="cpu") as engine:
        for steps in args.steps:
            for guidance in args.guidance:
                pictures = drawn(engine, asked, steps, guidance)
                answers: dict[str, list[Answer]] = defaultdict(list)
                for picture, (kind, _, scene) in zip(pictures, asked, strict=True):
                    answers[kind].append(judge.read(picture, scene))
                key = f"{steps} evaluations" + ("" if guidance is None else f", {guidance:g}")
                distance = frechet(judge.features(torch.stack(pictures)), real)
                found[key] = {**table(answers), "distance": round(distance, 2)}
                print(key, json.dumps(found[key], indent=1), flush=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
