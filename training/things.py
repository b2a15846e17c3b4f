"""The things, styles and colours of the embedded model, and what is held out of its training.

`things.txt` has a line for every thing: its names, the canonical one first, and its code points.
The first CORE lines were named by hand; the others bear the label of the Unicode CLDR. No people,
flags or brands.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

CORE = 245
STYLES = ("noto", "3d", "flat", "blob")

# name -> sRGB. White is what a background is when nobody says.
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (20, 20, 24),
    "gray": (140, 144, 150),
    "red": (214, 48, 49),
    "orange": (245, 140, 40),
    "yellow": (250, 215, 70),
    "lime": (165, 220, 70),
    "green": (40, 150, 75),
    "teal": (20, 140, 140),
    "sky blue": (130, 205, 245),
    "blue": (45, 105, 220),
    "navy": (25, 40, 95),
    "purple": (125, 65, 180),
    "pink": (250, 160, 195),
    "brown": (125, 80, 50),
    "beige": (240, 225, 195),
}
BACKGROUND_NAMES = tuple(BACKGROUNDS)

# What a thing may be coloured: hues far enough apart to be told from each other.
COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 40),
    "yellow": (245, 215, 60),
    "green": (50, 170, 70),
    "blue": (45, 105, 220),
    "purple": (135, 65, 190),
    "pink": (240, 110, 180),
}
COLOUR_NAMES = tuple(COLOURS)

# place -> centre of the thing, in shares of the picture's sides.
PLACES = {
    "on the left": (0.25, 0.5),
    "on the right": (0.75, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
    "in the top left corner": (0.25, 0.25),
    "in the top right corner": (0.75, 0.25),
    "in the bottom left corner": (0.25, 0.75),
    "in the bottom right corner": (0.75, 0.75),
}
PLACE_NAMES = tuple(PLACES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One drawable thing: canonical name, every name it answers to, code points in hex."""

    name: str
    names: tuple[str, ...]
    code: str


def _read(path: Path) -> tuple[Thing, ...]:
    things = []
    for line in path.read_text("utf-8").splitlines():
        names, _, code = line.partition("|")
        spoken = tuple(name.strip() for name in names.split(","))
        things.append(Thing(name=spoken[0], names=spoken, code=code.strip()))
    return tuple(things)


THINGS = _read(Path(__file__).with_name("things.txt"))


def is_style_held_out(thing: int, style: int) -> bool:
    """Whether this thing is never trained in this style (about 5 %, and at most one of them)."""
    draw = _hash(f"style {THINGS[thing].name}")
    return draw % 100 < 10 and (draw // 100) % 2 == style


def is_background_held_out(thing: int, background: str) -> bool:
    """Whether this thing is never trained on this background (purple, teal: a quarter)."""
    if background not in ("purple", "teal"):
        return False
    return _hash(f"background {THINGS[thing].name}") % 4 == 0


def is_colour_held_out(thing: int, colour: str) -> bool:
    """Whether this thing is never trained in this colour (10 %)."""
    return _hash(f"colour {colour} {THINGS[thing].name}") % 10 == 0


def is_place_held_out(thing: int, place: str) -> bool:
    """Whether this thing is never trained in this place (10 %)."""
    return _hash(f"place {place} {THINGS[thing].name}") % 10 == 0


def is_pair_held_out(one: int, other: int) -> bool:
    """Whether these two are never trained together, in either order (10 %)."""
    first, second = sorted((THINGS[one].name, THINGS[other].name))
    return _hash(f"pair {first} {second}") % 10 == 0


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
