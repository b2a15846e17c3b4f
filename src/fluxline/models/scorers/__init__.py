"""Judges of pictures: how well does one fit its prompt, or at least: is it sharp?"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fluxline.models.scorers.clip import ClipScorer
from fluxline.models.scorers.technical import TechnicalScorer
from fluxline.request import ScorerName

__all__ = ["ClipScorer", "Scorer", "TechnicalScorer"]


class Scorer(Protocol):
    """What the engine asks. Scores of one scorer can be compared, those of two cannot."""

    @property
    def name(self) -> ScorerName:
        """What kind of judge it is, as callers are told."""
        ...

    def score(self, pictures: Sequence[NDArray[np.uint8]], prompts: Sequence[str]) -> list[float]:
        """Score each picture (height, width, 3), drawn for its prompt. More is better."""
        ...
