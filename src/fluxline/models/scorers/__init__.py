"""Judges of pictures: how well does one fit its prompt?"""

from fluxline.models.scorers.clip import ClipScorer

__all__ = ["ClipScorer"]
