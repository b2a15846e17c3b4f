"""The evaluation's prompts, each with what its picture must show: a file per recipe.

A recipe that knows all kinds is asked a thousand.

    python -m training.questions --data DIR --recipe cpu     # writes training/questions.cpu.jsonl

Held out means: never in training, from the first stage on. A kind names what is asked for; `alone`
is one thing in its own colour, in a style and on a background that were trained with it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from training.captions import STYLE_WORDS, article, looks
from training.compose import Composer
from training.faces import FACES, LOOKS, NONE, is_face_held_out
from training.recipe import RECIPES
from training.scenes import Figure, Scene, Stock, is_held_out
from training.things import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    PLACE_NAMES,
    STYLES,
    THINGS,
    is_background_held_out,
    is_colour_held_out,
    is_pair_held_out,
    is_place_held_out,
    is_style_held_out,
)

FOLDER = Path(__file__).parent
COUNTS = {
    "alone": 400,
    "style, held out": 90,
    "background, held out": 90,
    "colour": 50,
    "colour, held out": 90,
    "place": 50,
    "place, held out": 50,
    "pair": 80,
    "pair, held out": 50,
    "face": 20,
    "face, held out": 30,
}
ATTRIBUTES = 3  # that are said of a face


def prompt(scene: Scene) -> str:
    """The plain sentence for a scene."""
    ground = BACKGROUND_NAMES[scene.background]
    on = f" on {article(ground)}{ground} background"
    if scene.face is not None:
        return f"pixel art portrait of a person{looks(FACES[scene.face], scene.says_looks)}{on}"
    names = []
    for figure in scene.figures:
        name = THINGS[figure.thing].names[0]
        if figure.colour is not None:
            spoken = THINGS[figure.thing].names
            bare = next(n for n in spoken if set(COLOUR_NAMES).isdisjoint(n.split()))
            name = f"{COLOUR_NAMES[figure.colour]} {bare}"
        names.append(f"{article(name)}{name}")
    subject = names[0]
    if scene.place is not None:
        subject = f"a small {names[0].split(' ', 1)[1]} {PLACE_NAMES[scene.place]}"
    elif scene.relation is not None:
        between = {"left": "to the left of", "above": "above"}[scene.relation]
        subject = f"{names[0]} {between} {names[1]}"
    style = STYLE_WORDS[STYLES[scene.figures[0].style]][0]
    return f"{style} drawing of {subject}{on}"


def scenes(stock: Stock, seed: int = 0) -> list[tuple[str, Scene]]:
    """All scenes with their kinds; every thing is asked for alone at least once."""
    rng = np.random.default_rng(seed)
    found = []
    recipe = stock.recipe
    shares = {
        "colour": recipe.recoloured,
        "place": recipe.placed,
        "pair": recipe.paired,
        "face": recipe.faces,
    }
    for kind, count in COUNTS.items():
        if shares.get(kind.partition(",")[0]) == 0:
            continue  # this recipe never learns it
        is_wanted = _WANTED[kind]
        made = 0
        while made < count:
            thing = made % stock.recipe.things if kind == "alone" else None
            scene = _scene(rng, stock, kind, thing)
            if scene is not None and is_wanted(scene):
                found.append((kind, scene))
                made += 1
    return found


def _scene(rng: np.random.Generator, stock: Stock, kind: str, thing: int | None) -> Scene | None:
    recipe, what = stock.recipe, kind.partition(",")[0]
    if what == "face":
        return _face(rng)
    things = [int(t) for t in rng.choice(recipe.things, 2 if what == "pair" else 1, replace=False)]
    if thing is not None:
        things = [thing]
    style = int(rng.integers(recipe.styles))
    if not all(stock.available[t, style] for t in things):
        return None
    if what == "colour" and not stock.coloured[things[0]]:
        return None
    colour = int(rng.integers(len(COLOUR_NAMES))) if what == "colour" else None
    return Scene(
        figures=tuple(Figure(thing=t, style=style, colour=colour) for t in things),
        background=int(rng.integers(len(BACKGROUND_NAMES))),
        place=int(rng.integers(len(PLACE_NAMES))) if what == "place" else None,
        relation=str(rng.choice(("left", "above"))) if what == "pair" else None,
    )


def _face(rng: np.random.Generator) -> Scene:
    face = int(rng.integers(len(FACES)))
    there = [attribute for attribute, word in FACES[face].items() if word != NONE]
    said = rng.choice(there, ATTRIBUTES, replace=False)
    return Scene(
        figures=(),
        background=int(rng.integers(len(BACKGROUND_NAMES))),
        face=face,
        says_looks=tuple(a for a in LOOKS if a in said),
    )


def _style(s: Scene) -> bool:
    return any(is_style_held_out(f.thing, f.style) for f in s.figures)


def _ground(s: Scene) -> bool:
    return any(is_background_held_out(f.thing, BACKGROUND_NAMES[s.background]) for f in s.figures)


def _colour(s: Scene) -> bool:
    return any(
        f.colour is not None and is_colour_held_out(f.thing, COLOUR_NAMES[f.colour])
        for f in s.figures
    )


def _place(s: Scene) -> bool:
    return s.place is not None and is_place_held_out(s.figures[0].thing, PLACE_NAMES[s.place])


def _pair(s: Scene) -> bool:
    return len(s.figures) == 2 and is_pair_held_out(*(f.thing for f in s.figures))


def _looks(s: Scene) -> bool:
    return s.face is not None and is_face_held_out(s.face)


_WHY = {
    "style": _style,
    "background": _ground,
    "colour": _colour,
    "place": _place,
    "pair": _pair,
    "face": _looks,
}


def _only(what: str) -> Callable[[Scene], bool]:
    """Whether a scene is held out for this reason and no other."""
    return lambda s: [name for name, test in _WHY.items() if test(s)] == [what]


_WANTED = {
    kind: _only(kind.partition(",")[0]) if "held out" in kind else (lambda s: not is_held_out(s))
    for kind in COUNTS
}


def read(recipe: str) -> list[tuple[str, str, Scene]]:
    """Kind, prompt and scene of every question of a recipe."""
    found = []
    for line in (FOLDER / f"questions.{recipe}.jsonl").read_text("utf-8").splitlines():
        asked = json.loads(line)
        shown = asked["scene"]
        figures = tuple(Figure(**f) for f in shown.pop("figures"))
        said = tuple(shown.pop("says_looks", ()))
        scene = Scene(figures=figures, says_looks=said, **shown)
        found.append((asked["kind"], asked["prompt"], scene))
    return found


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    args = parser.parse_args()
    stock = Composer(args.data, RECIPES[args.recipe]).stock
    lines = [
        json.dumps({"kind": kind, "prompt": prompt(scene), "scene": asdict(scene)})
        for kind, scene in scenes(stock)
    ]
    (FOLDER / f"questions.{args.recipe}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
