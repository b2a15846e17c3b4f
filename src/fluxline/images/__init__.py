"""Pictures as files: encoding, the recipe inside them, the asked size, a look in the terminal.

Pixels are numpy uint8 (height, width, 3) everywhere in this room. No torch, no web framework.
"""

from fluxline.images.containers import format_of
from fluxline.images.encode import check_format, encode, preview
from fluxline.images.fit import fit
from fluxline.images.receipt import Receipt
from fluxline.images.recipe import SAMPLER_TITLES, Recipe, read_recipe
from fluxline.images.technical import technical_score
from fluxline.images.terminal import detect, render

__all__ = [
    "SAMPLER_TITLES",
    "Receipt",
    "Recipe",
    "check_format",
    "detect",
    "encode",
    "fit",
    "format_of",
    "preview",
    "read_recipe",
    "render",
    "technical_score",
]
