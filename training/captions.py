"""Say what a scene shows, in many ways.

Style, background and colours may be left out: then the picture mostly has the default ones. Filler
and nonsense words teach the encoders that unknown words do no harm.
"""

from __future__ import annotations

import numpy as np

from training.faces import FACES, NONE, Face
from training.scenes import Figure, Scene, Stock
from training.things import BACKGROUND_NAMES, COLOUR_NAMES, PLACE_NAMES, STYLES, THINGS

EMPTY_SHARE = 1 / 16

STYLE_WORDS = {
    "noto": ("noto style", "noto", "cartoon", "cartoon style", "2d"),
    "3d": ("3d", "3d render", "3d style", "fluent 3d", "glossy 3d", "rendered"),
    "flat": ("flat", "flat style", "flat design", "vector", "fluent flat"),
    "blob": ("blob", "blob style", "old noto", "gradient style"),
}
PICTURES = ("picture", "drawing", "illustration", "image", "icon", "emoji", "painting", "art",
            "photo", "sketch", "portrait", "render")  # fmt: skip
FILLERS = ("cute", "little", "big", "beautiful", "simple", "nice", "detailed", "funny",
           "happy", "old", "new", "shiny", "lovely", "single", "colorful", "bright",
           "large", "great", "pretty", "sweet", "fancy", "magic", "modern", "classic", "cozy",
           "giant", "wonderful", "fresh", "wild", "friendly", "plain", "high quality",
           "futuristic", "sitting", "standing", "smiling", "flying", "running")  # fmt: skip
TAILS = ("high quality", "detailed", "4k", "centered", "masterpiece", "digital art", "clean",
         "best quality", "for kids", "alone", "vector art", "minimal",
         "highly detailed", "in the style of an emoji", "sharp focus", "studio light",
         "trending", "professional", "on a table", "in space", "in the forest", "at night",
         "in the snow", "at sunset", "on the street", "in a garden", "looking at the camera",
         "please", "concept art", "wearing a hat", "with a smile")  # fmt: skip
_VOWELS = "aeiou"


def caption(scene: Scene, rng: np.random.Generator, stock: Stock) -> str:
    """Say the scene; nothing is said in one of sixteen."""
    if rng.random() < EMPTY_SHARE:
        return ""
    if scene.face is not None:
        text = f"{_face_opening(rng)}{looks(FACES[scene.face], scene.says_looks)}"
    else:
        styles = STYLE_WORDS[STYLES[scene.figures[0].style]]
        style = str(rng.choice(styles)) if scene.says_style else ""
        text = _styled(_figures(scene, rng, stock), style, rng)
    if scene.says_background:
        text += _ground(BACKGROUND_NAMES[scene.background], rng)
    if rng.random() < 0.1:
        text += f", {rng.choice(TAILS)}"
    if rng.random() < 0.06:
        text = _disturbed(text, rng)
    return text


def _face_opening(rng: np.random.Generator) -> str:
    person = rng.choice(("a person", "someone", "a face", "a character"))
    style = rng.choice(("pixel art", "pixel"))
    forms = (f"{style} portrait of {person}", f"a {style} portrait of {person}",
             f"{style} of {person}", f"{style} avatar", f"a {style} face", f"a {style} person",
             "a person", "a face", f"a portrait of {person}", "an avatar")  # fmt: skip
    return str(rng.choice(forms))


def looks(face: Face, said: tuple[str, ...]) -> str:
    """What is said of a face, as the end of a sentence."""
    has, wears = [], []
    if "hair" in said or "length" in said:
        told = [face[a] for a in ("length", "hair") if a in said]
        has.append(" ".join((*told, "hair")))
    if "skin" in said:
        has.append(f"{face['skin']} skin")
    if "glasses" in said and face["glasses"] != NONE:
        wears.append(face["glasses"])
    if "clothes" in said:
        wears.append(f"{article(face['clothes'])}{face['clothes']} shirt")
    if "hat" in said and face["hat"] != NONE:
        wears.append(f"a {face['hat']} hat")
    text = f" with {' and '.join(has)}" if has else ""
    return text + (f", wearing {' and '.join(wears)}" if wears else "")


def _figures(scene: Scene, rng: np.random.Generator, stock: Stock) -> str:
    """What is to be seen and where, as a noun phrase."""
    spoken = [_figure(figure, rng, stock) for figure in scene.figures]
    if scene.place is not None:
        small = str(rng.choice(("small", "tiny", "little", "")))
        name = _named(f"{small} {_bare(spoken[0])}".strip(), rng)
        return f"{name} {PLACE_NAMES[scene.place]}"
    if scene.relation == "left":
        one, other = spoken
        forms = (f"{one} and {other}", f"{one} to the left of {other}",
                 f"{one} on the left and {other} on the right", f"{one} next to {other}",
                 f"{other} to the right of {one}", f"{one} beside {other}")  # fmt: skip
        return str(rng.choice(forms))
    if scene.relation == "above":
        one, other = spoken
        forms = (f"{one} above {other}", f"{one} on top of {other}", f"{other} below {one}",
                 f"{other} under {one}")  # fmt: skip
        return str(rng.choice(forms))
    return spoken[0]


def _figure(figure: Figure, rng: np.random.Generator, stock: Stock) -> str:
    names = THINGS[figure.thing].names
    name = names[0] if rng.random() < 0.5 else str(rng.choice(names))
    colour = stock.colour_of(figure)
    is_told = figure.colour is not None or rng.random() < 0.15
    if colour is not None and is_told:
        # "a red apple" whose name says so already, or a blue one whose name says red: the bare name
        plain = min(names, key=lambda n: sum(word in COLOUR_NAMES for word in n.split()))
        name = f"{COLOUR_NAMES[colour]} {plain}"
    if rng.random() < 0.15:
        name = f"{rng.choice(FILLERS)} {name}"
    return _named(name, rng)


def _named(name: str, rng: np.random.Generator) -> str:
    draw = rng.random()
    if draw < 0.12:
        return name
    return f"the {name}" if draw < 0.18 else f"{article(name)}{name}"


def _bare(spoken: str) -> str:
    for article in ("a ", "an ", "the "):
        spoken = spoken.removeprefix(article)
    return spoken


def _styled(subject: str, style: str, rng: np.random.Generator) -> str:
    if not style:
        picture = f"{rng.choice(('a ', ''))}{rng.choice(PICTURES)} of {subject}"
        return picture if rng.random() < 0.25 else subject
    form = rng.integers(4)
    if form == 0:
        return f"{article(style)}{style} {_bare(subject)}"
    if form == 1:
        return f"{subject}, {style}"
    picture = "" if style.endswith("render") else f" {rng.choice(PICTURES)}"
    return f"{style}{picture} of {subject}"


def _ground(colour: str, rng: np.random.Generator) -> str:
    one = f"{article(colour)}{colour} background"
    forms = (f" on {one}", f" on {one}", f" on {colour}", f", {colour} background",
             f" with {one}", f" in front of {one}")  # fmt: skip
    return str(rng.choice(forms))


def article(name: str) -> str:
    """The indefinite article and a space."""
    return "an " if name[0] in _VOWELS else "a "


def _disturbed(text: str, rng: np.random.Generator) -> str:
    """Add a word of random letters, or drop small words."""
    words = text.split()
    if rng.random() < 0.5:
        letters = rng.integers(0, 26, rng.integers(2, 6))
        words.insert(int(rng.integers(len(words) + 1)), "".join(chr(97 + k) for k in letters))
    else:
        words = [w for w in words if w not in ("a", "an", "the", "of")]
    return " ".join(words)
