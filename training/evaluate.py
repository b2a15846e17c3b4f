"""Ask the embedded model the evaluation's questions and let the classifier read its answers.

    python -m training.evaluate --data DIR --classifier FILE --out FILE.json [--every 10]

The thing is right if the classifier names it, of all things; of two, both, each in its place. A
face is right if the nearest real one has all that was asked for. The classifier's own errors count
against the model: the ceiling is in the table. A background is right if the middle colour of the
picture's rim is nearest to the one asked for. The distance is Fréchet's between the classifier's
features of the drawn pictures and of the real ones of the same scenes. The scorer ranks right if a
picture made for a prompt that was held out scores higher for it than one made for another does.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fluxline import Engine
from fluxline.engine.ticket import Ticket, new_request
from fluxline.models.registry import MODELS
from fluxline.models.scorers import ClipScorer
from fluxline.request import ImageResult, best
from training import classifier, questions
from training.compose import Composer
from training.faces import FACES
from training.recipe import RECIPES
from training.scenes import Scene

SIZE = (128, 128)
IN_FLIGHT = 64
RIVALS = 20  # pictures of other prompts that each picture is ranked against


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How the pictures are drawn, and which of the questions are asked."""

    steps: int = 8
    guidance: float | None = None  # None: the model's default
    best_of: int = 1  # candidates; the scorer chooses
    every: int = 1  # one question of so many

    @property
    def name(self) -> str:
        """How the table calls it."""
        parts = [f"{self.steps} evaluations"]
        parts += [] if self.guidance is None else [f"guidance {self.guidance:g}"]
        parts += [f"best of {self.best_of}"] if self.best_of > 1 else []
        return ", ".join(parts) + (f", every {self.every}th" if self.every > 1 else "")


SETTINGS = (
    Setting(),
    *(Setting(steps=steps, every=5) for steps in (2, 4, 8, 20)),
    *(Setting(guidance=guidance, every=5) for guidance in (1.0, 2.0, 4.0)),
    Setting(best_of=4, every=5),
)


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
    engine: Engine, asked: list[tuple[str, str, Scene]], setting: Setting
) -> list[torch.Tensor]:
    """The pictures of all prompts; the first seed of a question is best_of times its number."""
    pictures: list[torch.Tensor] = []
    waiting: list[Ticket] = []
    n, top_k = setting.best_of, 1 if setting.best_of > 1 else None
    params: dict[str, float] = {"steps": setting.steps}
    if setting.guidance is not None:
        params["guidance"] = setting.guidance
    for number, (_, prompt, _) in enumerate(asked):
        request = new_request(prompt, n=n, top_k=top_k, seed=n * number, params=params)
        waiting.append(engine.submit(request))
        if len(waiting) == IN_FLIGHT or number + 1 == len(asked):
            pictures += [_picture(best(ticket.result(), top_k)[0]) for ticket in waiting]
            waiting.clear()
    return pictures


def ranked_right(
    scorer: ClipScorer, asked: list[tuple[str, str, Scene]], pictures: list[torch.Tensor]
) -> float:
    """Share of rivals that score lower for a held-out prompt than the picture made for it."""
    rng = np.random.default_rng(0)
    pixels = [((p + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for p in pictures]
    right = []
    for k, (kind, prompt, _) in enumerate(asked):
        if "held out" in kind:
            others = rng.choice([i for i in range(len(asked)) if i != k], RIVALS, replace=False)
            shown = [pixels[i] for i in (k, *others)]
            own, *rivals = scorer.score(shown, [prompt] * len(shown))
            right += [own > rival for rival in rivals]
    return _share(right)


def table(answers: dict[str, list[Answer]]) -> dict[str, dict[str, float]]:
    """Shares of right answers: of all seen, of all held out, of all pairs, and by kind."""
    groups: dict[str, list[Answer]] = {"all seen": [], "all held out": [], "all pairs": []}
    for kind, given in answers.items():
        is_pair, is_held_out = kind.startswith("pair"), "held out" in kind
        group = "all pairs" if is_pair else "all held out" if is_held_out else "all seen"
        groups[group] += given
    rows = {}
    for name, given in {**groups, **answers}.items():
        if given:
            rows[name] = {
                "pictures": len(given),
                "thing": _share([a.thing for a in given]),
                "background": _share([a.background for a in given]),
            }
        for what in ("style", "colour"):
            if judged := [a for a in (getattr(x, what) for x in given) if a is not None]:
                rows[name][what] = _share(judged)
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
    """Evaluate at every setting, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--every", type=int, default=1, help="a quick look: one of so many")
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    composer = Composer(args.data, recipe)
    judge = Judge(composer, classifier.load(args.classifier, recipe))
    found: dict[str, Any] = {"ceiling": classifier.accuracy(judge.model, composer)}
    with Engine("mini", device="cpu") as engine:
        for setting in SETTINGS:
            asked = questions.read(args.recipe)[:: setting.every * args.every]
            pictures = drawn(engine, asked, setting)
            answers: dict[str, list[Answer]] = defaultdict(list)
            for picture, (kind, _, scene) in zip(pictures, asked, strict=True):
                answers[kind].append(judge.read(picture, scene))
            real = judge.features(composer.draw([s for _, _, s in asked], SIZE, None))
            distance = frechet(judge.features(torch.stack(pictures)), real)
            found[setting.name] = {**table(answers), "distance": round(distance, 2)}
            if setting == Setting():
                scorer = ClipScorer.open(Path(MODELS["mini"].scorer or ""), torch.device("cpu"))
                found["ranked right"] = ranked_right(scorer, asked, pictures)
            print(setting.name, json.dumps(found[setting.name], indent=1), flush=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
