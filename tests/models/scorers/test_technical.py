"""The technical scorer looks at pictures alone."""

from fluxline.images import technical_score
from fluxline.models.scorers import TechnicalScorer
from tests.images.pictures import noise, photo


def test_the_prompt_plays_no_part_and_every_picture_has_its_own_score():
    pictures = [photo(64), noise(32, 48), photo(64)]
    scores = TechnicalScorer().score(pictures, ["a fox", "", "a cat"])
    assert scores == TechnicalScorer().score(pictures, ["", "a fox", ""])
    assert scores == [technical_score(picture) for picture in pictures]
    assert scores[0] == scores[2] != scores[1]
