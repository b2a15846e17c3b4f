"""Say what a scene shows, in many ways.

A caption may leave out style and background: then the picture mostly has the default ones.
Filler and nonsense words teach the encoders that unknown words do no harm.
"""

from __future__ import annotations

import numpy as np

from training.compose import BACKGROUND_NAMES, Scene
from training.things import STYLES, THINGS

EMPTY_SHARE = 1 / 16

STYLE_WORDS = {
    "noto": ("noto style", "noto", "flat", "flat style", "cartoon", "2d"),
    "3d": ("3d", "3d render", "3d style", "fluent 3d", "glossy 3d", "rendered"),
}
PICTURES = ("picture", "drawing", "illustration", "image", "icon", "emoji", "painting", "art",
            "photo", "sketch", "portrait", "render")  # fmt: skip
FILLERS = ("cute", "little", "small", "big", "beautiful", "simple", "nice", "detailed", "funny",
           "happy", "old", "new", "shiny", "lovely", "single", "colorful", "bright", "tiny",
           "large", "great", "pretty", "sweet", "fancy", "magic", "modern", "classic", "cozy",
           "giant", "wonderful", "fresh", "wild", "friendly", "plain", "high quality",
           "futuristic", "sitting", "standing", "smiling", "flying", "running")  # fmt: skip
TAILS = ("high quality", "detailed", "4k", "centered", "masterpiece", "digital art", "clean",
         "best quality", "for kids", "in the middle", "alone", "vector art", "minimal",
         "highly detailed", "in the style of an emoji", "sharp focus", "studio light",
         "trending", "professional", "on a table", "in space", "in the forest", "at night",
         "in the snow", "at sunset", "on the street", "in a garden", "looking at the camera",
         "please", "concept art", "wearing a hat", "with a smile")  # fmt: skip
_VOWELS = "aeiou"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Say the scene; nothing is said in one of sixteen."""
    if rng.random() < EMPTY_SHARE:
        return ""
    names = THINGS[scene.thing].names
    name = names[0] if rng.random() < 0.5 else str(rng.choice(names))
    filler = f"{rng.choice(FILLERS)} " if rng.random() < 0.2 else ""
    style = str(rng.choice(STYLE_WORDS[STYLES[scene.style]])) if scene.says_style else ""
    text = _subject(f"{filler}{name}", style, rng)
    if scene.says_background:
        text += _ground(BACKGROUND_NAMES[scene.background], rng)
    if rng.random() < 0.12:
        text += f", {rng.choice(TAILS)}"
    if rng.random() < 0.08:
        text = _disturbed(text, rng)
    return text


def _subject(name: str, style: str, rng: np.random.Generator) -> str:
    article = "the " if rng.random() < 0.06 else _with_article(name)
    spoken = name if rng.random() < 0.12 else f"{article}{name}"
    if not style:
        picture = f"{rng.choice(('a ', ''))}{rng.choice(PICTURES)} of {spoken}"
        return picture if rng.random() < 0.25 else spoken
    form = rng.integers(4)
    if form == 0:
        return f"{_with_article(style)}{style} {name}"
    if form == 1:
        return f"{spoken}, {style}"
    picture = "" if style.endswith("render") else f" {rng.choice(PICTURES)}"
    return f"{style}{picture} of {spoken}"


def _ground(colour: str, rng: np.random.Generator) -> str:
    forms = (f" on a {colour} background", f" on a {colour} background", f" on {colour}",
             f", {colour} background", f" with a {colour} background",
             f" in front of a {colour} background")  # fmt: skip
    return str(rng.choice(forms))


def _with_article(name: str) -> str:
    return "an " if name[0] in _VOWELS else "a "


def _disturbed(text: str, rng: np.random.Generator) -> str:
    """Add a word of random letters, or drop a small word."""
    words = text.split()
    if rng.random() < 0.5:
        letters = rng.integers(0, 26, rng.integers(2, 6))
        words.insert(int(rng.integers(len(words) + 1)), "".join(chr(97 + k) for k in letters))
    else:
        words = [w for w in words if w not in ("a", "an", "the", "of", "on")]
    return " ".join(words)
