"""Ask the embedded model the evaluation's questions and let the classifier read its answers.

    python -m training.evaluate --data DIR --classifier FILE --out FILE.json --recipe cpu
        [--model mini] [--steps 8] [--guidance 1 2 4] [--best-of 4] [--every 5]

The thing is right if the classifier names it, of all things; of two, both, each in its place. A
face is right if the nearest real one has all that was asked for. The classifier's own errors count
against the model: the ceiling is in the table. A background is right if the middle colour of the
picture's rim is nearest to the one asked for. The distance is Fréchet's between the classifier's
features of the drawn pictures and of the real ones of the same scenes.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fluxline import Engine
from fluxline.engine.ticket import Ticket, new_request
from fluxline.request import ImageResult, best
from training import classifier, questions
from training.compose import Composer
from training.faces import FACES
from training.recipe import RECIPES
from training.scenes import Scene

SIZE = (128, 128)
IN_FLIGHT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is right in a picture."""

    thing: bool  # or both; of a face: all that was said of it
    style: bool | None  # None: a face
    colour: bool | None  # None: no colour was asked for
    background: bool


class Judge:
    """Reads pictures."""

    def __init__(self, composer: Composer, model: classifier.Classifier) -> None:
        self.composer, self.model = composer, model

    @torch.inference_mode()
    def read(self, picture: torch.Tensor, scene: Scene) -> Answer:
        """Judge a picture `(3, 128, 128)` in [-1, 1]."""
        if scene.face is not None:
            return self._face(picture, scene)
        boxes = np.array(scene.boxes(*SIZE))
        seen = classifier.boxes_of(picture.expand(len(boxes), -1, -1, -1), boxes, None)
        things, styles, colours = (row.argmax(1).tolist() for row in self.model(seen))
        asked = scene.figures
        is_coloured = asked[0].colour is not None
        return Answer(
            thing=things == [f.thing for f in asked],
            style=styles == [f.style for f in asked],
            colour=colours[0] == asked[0].colour if is_coloured else None,
            background=self._ground(picture[:, [0, 1, 2, -3, -2, -1]]) == scene.background,
        )

    def _face(self, picture: torch.Tensor, scene: Scene) -> Answer:
        """Read a face as the nearest of all there are, on the background that was asked for."""
        alike = [replace(scene, face=k) for k in range(len(FACES))]
        real = F.avg_pool2d(self.composer.draw(alike, SIZE, None), 8)
        gap = (real - F.avg_pool2d(picture, 8)).square().sum((1, 2, 3))
        seen, asked = FACES[int(gap.argmin())], FACES[scene.face or 0]
        return Answer(
            thing=all(seen[a] == asked[a] for a in scene.says_looks),
            style=None,
            colour=None,
            background=self._ground(picture[:, :8, [*range(12), *range(-12, 0)]])
            == scene.background,
        )

    def _ground(self, rim: torch.Tensor) -> int:
        """The background colour nearest to the middle one of pixels (3, ...)."""
        middle = rim.flatten(1).median(1).values
        return int((self.composer.colours - middle).square().sum(1).argmin())

    @torch.inference_mode()
    def features(self, pictures: torch.Tensor) -> np.ndarray:
        """Features of whole pictures `(B, 3, 128, 128)`."""
        boxes = np.tile([64.0, 64.0, 128 / classifier.MARGIN], (len(pictures), 1))
        read: np.ndarray = self.model.features(classifier.boxes_of(pictures, boxes, None)).numpy()
        return read


def drawn(
    engine: Engine,
    asked: list[tuple[str, str, Scene]],
    *,
    steps: int,
    guidance: float | None,
    best_of: int = 1,
) -> list[torch.Tensor]:
    """The pictures of all prompts; the first seed of a question is best_of times its number."""
    pictures: list[torch.Tensor] = []
    waiting: list[Ticket] = []
    top_k = 1 if best_of > 1 else None
    params = {"steps": steps} | ({} if guidance is None else {"guidance": guidance})
    for seed, (_, prompt, _) in enumerate(asked):
        request = new_request(prompt, n=best_of, top_k=top_k, seed=best_of * seed, params=params)
        waiting.append(engine.submit(request))
        if len(waiting) == IN_FLIGHT:
            pictures += [_picture(best(ticket.result(), top_k)[0]) for ticket in waiting]
            waiting.clear()
    return pictures + [_picture(best(ticket.result(), top_k)[0]) for ticket in waiting]


def table(answers: dict[str, list[Answer]]) -> dict[str, dict[str, float]]:
    """Shares of right answers by kind."""
    rows = {}
    for kind, given in answers.items():
        rows[kind] = {
            "pictures": len(given),
            "thing": _share([a.thing for a in given]),
            "background": _share([a.background for a in given]),
        }
        for what in ("style", "colour"):
            if asked := [a for a in (getattr(x, what) for x in given) if a is not None]:
                rows[kind][what] = _share(asked)
    return rows


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance between two clouds of features, taken as Gaussians."""
    gap = np.square(one.mean(0) - other.mean(0)).sum()
    a, b = np.cov(one.T), np.cov(other.T)
    values = np.linalg.eigvals(a @ b)
    root = np.sqrt(np.clip(values.real, 0, None)).sum()
    return float(gap + np.trace(a) + np.trace(b) - 2 * root)


def _picture(image: ImageResult) -> torch.Tensor:
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
    parser.add_argument("--best-of", type=int, default=1, help="candidates; the scorer chooses")
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
                pictures = drawn(
                    engine, asked, steps=steps, guidance=guidance, best_of=args.best_of
                )
                answers: dict[str, list[Answer]] = defaultdict(list)
                for picture, (kind, _, scene) in zip(pictures, asked, strict=True):
                    answers[kind].append(judge.read(picture, scene))
                key = f"{steps} evaluations" + (
                    "" if guidance is None else f", guidance {guidance:g}"
                )
                key += f", best of {args.best_of}" if args.best_of > 1 else ""
                distance = frechet(judge.features(torch.stack(pictures)), real)
                found[key] = {**table(answers), "distance": round(distance, 2)}
                print(key, json.dumps(found[key], indent=1), flush=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
