"""Pictures as files: encoding, the recipe inside them, the asked size, a look in the terminal.

Pixels are numpy uint8 (height, width, 3) everywhere in this room. No torch, no web framework.
"""

from fluxline.images.containers import format_of
from fluxline.images.decode import decode, digest
from fluxline.images.encode import Pixels, check_format, encode, preview
from fluxline.images.fit import fit, place, stretch
from fluxline.images.receipt import Receipt
from fluxline.images.recipe import SAMPLER_TITLES, Recipe, read_recipe
from fluxline.images.technical import technical_score
from fluxline.images.terminal import detect, render

__all__ = [
    "SAMPLER_TITLES",
    "Pixels",
    "Receipt",
    "Recipe",
    "check_format",
    "decode",
    "detect",
    "digest",
    "encode",
    "fit",
    "format_of",
    "place",
    "preview",
    "read_recipe",
    "render",
    "stretch",
    "technical_score",
]
