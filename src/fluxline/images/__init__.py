"""Pictures as files: encoding, the recipe inside them, the asked size, a look in the terminal.

Pixels are numpy uint8 (height, width, 3) everywhere in this room. No torch, no web framework. What
knows pixels is imported when it is first asked for: a server that only tells of pictures starts
without numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fluxline.images.containers import format_of
from fluxline.images.receipt import Receipt
from fluxline.images.recipe import SAMPLER_TITLES, Recipe, read_recipe

if TYPE_CHECKING:
    from fluxline.images.canvas import expand, fill_in, shrink, soften
    from fluxline.images.decoder import (
        check_mask,
        decode,
        decode_hole,
        decode_mask,
        decode_painted,
        digest,
    )
    from fluxline.images.encoder import Pixels, check_format, encode, encode_mask, preview
    from fluxline.images.fitting import fit, paste, place, stretch
    from fluxline.images.technical import technical_score
    from fluxline.images.terminal import detect, render

__all__ = [
    "SAMPLER_TITLES",
    "Pixels",
    "Receipt",
    "Recipe",
    "check_format",
    "check_mask",
    "decode",
    "decode_hole",
    "decode_mask",
    "decode_painted",
    "detect",
    "digest",
    "encode",
    "encode_mask",
    "expand",
    "fill_in",
    "fit",
    "format_of",
    "paste",
    "place",
    "preview",
    "read_recipe",
    "render",
    "shrink",
    "soften",
    "stretch",
    "technical_score",
]

_KNOW_PIXELS = {
    "canvas": ("expand", "fill_in", "shrink", "soften"),
    "decoder": ("check_mask", "decode", "decode_hole", "decode_mask", "decode_painted", "digest"),
    "encoder": ("Pixels", "check_format", "encode", "encode_mask", "preview"),
    "fitting": ("fit", "paste", "place", "stretch"),
    "technical": ("technical_score",),
    "terminal": ("detect", "render"),
}
_MODULE_OF = {name: module for module, names in _KNOW_PIXELS.items() for name in names}


def __getattr__(name: str) -> Any:  # Any: the module protocol's own signature
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
