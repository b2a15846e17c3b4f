"""Fluxline: the fast, lightweight, unified engine for FLUX image generation."""

from typing import TYPE_CHECKING, Any

from fluxline.errors import FluxlineError
from fluxline.request import GenerationRequest, ImageResult, SamplingParams

if TYPE_CHECKING:
    from fluxline.engine import Engine

__version__ = "0.1.0"
__all__ = ["Engine", "FluxlineError", "GenerationRequest", "ImageResult", "SamplingParams"]


def __getattr__(name: str) -> Any:  # Any: the module protocol's own signature
    """Import the engine, and torch with it, only when somebody asks for it."""
    if name == "Engine":
        from fluxline.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
