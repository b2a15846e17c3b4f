"""What is written into the model card by itself."""

from training import card
from training.recipe import RECIPES

FOUND = {
    "ceiling": {"thing": 0.99},
    "8 evaluations": {
        "all seen": {"pictures": 4, "thing": 0.75, "background": 1.0},
        "alone": {"pictures": 4, "thing": 0.75, "background": 1.0, "style": 0.5},
        "distance": 1.5,
    },
    "ranked right": 0.957,
    "4 evaluations": {
        "all seen": {"pictures": 2, "thing": 0.5, "background": 1.0},
        "alone": {"pictures": 2, "thing": 0.5, "background": 1.0},
        "distance": 2.5,
    },
}


def test_the_table_has_every_kind_at_the_first_setting_and_sums_at_the_others():
    text = card.figures(FOUND)
    assert "| 8 evaluations | alone | 4 | 75% | 50% |  | 100% |" in text
    assert "| 4 evaluations | all seen | 2 | 50% |  |  | 100% |" in text
    assert "| 4 evaluations | alone" not in text
    assert "ranks right: 95.7%" in text
    assert "8 evaluations: 1.5; 4 evaluations: 2.5" in text


def test_everybody_whose_drawings_a_recipe_used_is_credited():
    said = card.credits_of(RECIPES["cpu"])
    assert all(name in said for name in ("Google", "Microsoft", "DiceBear", "CC0-1.0", "1.2.9"))
    assert "noto-v1" not in said
    assert "noto-v1" in card.credits_of(RECIPES["gpu"])
