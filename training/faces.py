"""Faces in pixel art whose every attribute is known: DiceBear's parts, put together by us.

`fetch.py` has Node draw them with the package's own code, and keeps 16 x 16 px of each.
"""

from __future__ import annotations

import hashlib
import random

COUNT = 1200
NONE = "none"

# attribute -> word: what the package is told. The first two are always there.
HAIR = {"blond": "e6c35c", "brown": "7a4a22", "black": "1c1a1a", "red": "b8401e", "gray": "a8a8a8",
        "blue": "2f6fd0"}  # fmt: skip
SKIN = {"light": "ffdbac", "tan": "e0a878", "dark": "8d5524"}
HATS = {NONE: "", "red": "c62828", "blue": "1e56c0", "green": "2e8b40", "yellow": "f2c718"}
CLOTHES = {"red": "d63031", "orange": "f58c28", "yellow": "fad746", "green": "28964b",
           "blue": "2d69dc", "purple": "7d41b4", "white": "f4f4f4", "black": "202024"}  # fmt: skip
LENGTHS = {"long": ("long01", "long07", "long12", "long13"),
           "short": ("short01", "short08", "short10", "short14", "short16")}  # fmt: skip
GLASSES = {NONE: (), "glasses": ("light05", "light06", "light07"), "sunglasses": ("dark02",)}

LOOKS = {
    "hair": tuple(HAIR),
    "length": tuple(LENGTHS),
    "skin": tuple(SKIN),
    "glasses": tuple(GLASSES),
    "hat": tuple(HATS),
    "clothes": tuple(CLOTHES),
}

Face = dict[str, str]
"""Attribute -> word, for every attribute of LOOKS."""


def _all(seed: int = 0) -> tuple[Face, ...]:
    """The faces there are: COUNT of all combinations, most without a hat or glasses."""
    rng = random.Random(seed)
    weights = {"hat": (6, 1, 1, 1, 1), "glasses": (3, 1, 1)}
    found: dict[tuple[str, ...], Face] = {}
    while len(found) < COUNT:
        face = {a: rng.choices(words, weights.get(a))[0] for a, words in LOOKS.items()}
        found[tuple(face.values())] = face
    return tuple(found.values())


FACES = _all()


def is_face_held_out(face: int) -> bool:
    """Whether this hair with these clothes and glasses is never trained (10 %)."""
    looks = " ".join(FACES[face][a] for a in ("hair", "clothes", "glasses"))
    return int.from_bytes(hashlib.sha256(f"face {looks}".encode()).digest()[:6], "big") % 10 == 0


def options(seed: int, face: Face) -> dict[str, object]:
    """The package's options for a face: every part named, nothing left to its chance."""
    rng = random.Random(seed)
    glasses, hat = GLASSES[face["glasses"]], HATS[face["hat"]]
    return {
        "seed": str(seed),
        "hair": [rng.choice(LENGTHS[face["length"]])],
        "hairColor": [HAIR[face["hair"]]],
        "skinColor": [SKIN[face["skin"]]],
        "glasses": [rng.choice(glasses)] if glasses else [],
        "glassesProbability": 100 if glasses else 0,
        "glassesColor": ["191919"],
        "hat": [rng.choice(("variant01", "variant04", "variant07"))],
        "hatColor": [hat or "c62828"],
        "hatProbability": 100 if hat else 0,
        "clothing": [rng.choice(("variant05", "variant17", "variant23"))],
        "clothingColor": [CLOTHES[face["clothes"]]],
        "eyes": ["variant01"],
        "mouth": [rng.choice(("happy07", "happy09", "happy10"))],
        "beardProbability": 0,
        "accessoriesProbability": 0,
    }
