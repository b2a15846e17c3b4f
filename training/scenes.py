"""What a training picture shows, before anybody draws it or speaks of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.faces import FACES, LOOKS, is_face_held_out
from training.recipe import Recipe
from training.things import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    PLACE_NAMES,
    PLACES,
    STYLES,
    is_background_held_out,
    is_colour_held_out,
    is_pair_held_out,
    is_place_held_out,
    is_style_held_out,
)

DEFAULT_STYLE, DEFAULT_BACKGROUND = STYLES.index("3d"), BACKGROUND_NAMES.index("white")
DEFAULT_STYLE_SHARE = 0.8  # of the pictures whose caption names no style,
DEFAULT_BACKGROUND_SHARE = 0.85  # or no background: a plain prompt has a plain answer

SIZES = ((128, 128), (160, 96), (96, 160))  # width, height in px
WHOLE, HALF = 0.89, 0.45  # side of a thing alone, and of a placed or paired one


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing of a scene, by indices. colour: None for its own."""

    thing: int
    style: int
    colour: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture: one thing in the middle or in a place, two beside or above each other, or a face.

    relation: "left" or "above", of the first figure to the second. place: index of PLACE_NAMES.
    face: index of FACES; then there are no figures, and says_looks names the attributes told.
    What is not said of style and background is mostly the default.
    """

    figures: tuple[Figure, ...]
    background: int
    place: int | None = None
    relation: str | None = None
    face: int | None = None
    says_looks: tuple[str, ...] = ()
    says_style: bool = True
    says_background: bool = True

    def boxes(self, width: int, height: int) -> list[tuple[float, float, float]]:
        """Centre and side in px of every figure in a picture of that size."""
        short = min(width, height)
        if self.place is not None:
            x, y = PLACES[PLACE_NAMES[self.place]]
            return [(x * width, y * height, HALF * short)]
        if self.relation == "left":
            side = min(WHOLE * height, 0.47 * width)
            return [(0.26 * width, height / 2, side), (0.74 * width, height / 2, side)]
        if self.relation == "above":
            side = min(WHOLE * width, 0.47 * height)
            return [(width / 2, 0.26 * height, side), (width / 2, 0.74 * height, side)]
        return [(width / 2, height / 2, WHOLE * short)]


def is_held_out(scene: Scene) -> bool:
    """Whether a scene is kept for the evaluation."""
    if scene.face is not None:
        return is_face_held_out(scene.face)
    first = scene.figures[0].thing
    if len(scene.figures) == 2 and is_pair_held_out(first, scene.figures[1].thing):
        return True
    if scene.place is not None and is_place_held_out(first, PLACE_NAMES[scene.place]):
        return True
    ground = BACKGROUND_NAMES[scene.background]
    return any(
        is_style_held_out(f.thing, f.style)
        or is_background_held_out(f.thing, ground)
        or (f.colour is not None and is_colour_held_out(f.thing, COLOUR_NAMES[f.colour]))
        for f in scene.figures
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What there is to draw from: N things of a recipe in S styles."""

    recipe: Recipe
    available: np.ndarray  # (N, S): the style has the thing
    coloured: np.ndarray  # (N,): it has one hue in every style, so it can be given another
    own_colour: np.ndarray  # (N, S): index of the colour word that is right for it; -1: none

    def colour_of(self, figure: Figure) -> int | None:
        """The colour of a figure as it will be drawn, if a word names it."""
        if figure.colour is not None:
            return figure.colour
        own = int(self.own_colour[figure.thing, figure.style])
        return own if own >= 0 else None


def random_scene(rng: np.random.Generator, stock: Stock) -> Scene:
    """Draw a scene that is allowed in training."""
    while True:
        scene = _any_scene(rng, stock)
        is_there = all(stock.available[f.thing, f.style] for f in scene.figures)
        if is_there and not is_held_out(scene):
            return scene


def _any_scene(rng: np.random.Generator, stock: Stock) -> Scene:
    recipe = stock.recipe
    says_style, says_background = bool(rng.random() < 0.5), bool(rng.random() < 0.6)
    style, background = int(rng.integers(recipe.styles)), int(rng.integers(len(BACKGROUND_NAMES)))
    if not says_style and rng.random() < DEFAULT_STYLE_SHARE:
        style = DEFAULT_STYLE
    if not says_background and rng.random() < DEFAULT_BACKGROUND_SHARE:
        background = DEFAULT_BACKGROUND
    if rng.random() < recipe.faces:
        return _any_face(rng, background, says_background)
    kind = rng.random()
    is_pair = kind < recipe.paired
    is_placed = not is_pair and kind < recipe.paired + recipe.placed
    things = [int(t) for t in rng.choice(recipe.things, 1 + is_pair, replace=False)]
    figures = []
    for thing in things:
        is_recoloured = stock.coloured[thing] and rng.random() < recipe.recoloured
        colour = int(rng.integers(len(COLOUR_NAMES))) if is_recoloured else None
        figures.append(Figure(thing=thing, style=style, colour=colour))
    return Scene(
        figures=tuple(figures),
        background=background,
        place=int(rng.integers(len(PLACE_NAMES))) if is_placed else None,
        relation=str(rng.choice(("left", "above"))) if is_pair else None,
        says_style=says_style,
        says_background=says_background,
    )


def _any_face(rng: np.random.Generator, background: int, says_background: bool) -> Scene:
    said = rng.choice(list(LOOKS), int(rng.integers(len(LOOKS))), replace=False)
    return Scene(
        figures=(),
        background=background,
        face=int(rng.integers(len(FACES))),
        says_looks=tuple(a for a in LOOKS if a in said),
        says_background=says_background,
    )


def random_size(rng: np.random.Generator, recipe: Recipe) -> tuple[int, int]:
    """Draw the (width, height) of a batch."""
    if rng.random() >= recipe.shapes:
        return SIZES[0]
    return SIZES[1 + int(rng.integers(2))]
