"""The scorer that is always there. It looks at the picture and never at the prompt."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fluxline.images import technical_score
from fluxline.request import ScorerName


class TechnicalScorer:
    """Scores pictures by their technique. Thread: the engine's."""

    name: ScorerName = "technical"

    def score(self, pictures: Sequence[NDArray[np.uint8]], prompts: Sequence[str]) -> list[float]:
        """Score, 0 to 1, each picture (height, width, 3); the prompts play no part."""
        return [technical_score(picture) for picture in pictures]
