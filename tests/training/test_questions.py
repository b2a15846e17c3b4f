"""What is held out of training is asked for as such, and never trained."""

import numpy as np
import pytest

from training import questions
from training.captions import caption
from training.recipe import RECIPES, T5_LENGTH
from training.scenes import Stock, is_held_out, random_scene

ASKED = {recipe: questions.read(recipe) for recipe in ("first", "cpu")}


@pytest.fixture(scope="module")
def stock():
    recipe = RECIPES["cpu"]
    there = np.ones((recipe.things, recipe.styles), dtype=bool)
    return Stock(
        recipe=recipe,
        available=there,
        coloured=there[:, 0],
        own_colour=np.full(there.shape, -1),
    )


@pytest.mark.parametrize("recipe", ASKED)
def test_a_question_is_held_out_exactly_if_its_kind_says_so(recipe):
    assert all(is_held_out(scene) == ("held out" in kind) for kind, _, scene in ASKED[recipe])


@pytest.mark.parametrize("recipe", ASKED)
def test_a_prompt_is_the_plain_sentence_of_its_scene(recipe):
    assert all(prompt == questions.prompt(scene) for _, prompt, scene in ASKED[recipe])


def test_the_recipe_for_cpus_is_asked_a_thousand_questions_of_every_kind():
    kinds = [kind for kind, _, _ in ASKED["cpu"]]
    assert {kind: kinds.count(kind) for kind in kinds} == questions.COUNTS
    assert len(kinds) == 1000


def test_every_thing_of_the_recipe_is_asked_for_alone():
    asked = {scene.figures[0].thing for kind, _, scene in ASKED["cpu"] if kind == "alone"}
    assert asked == set(range(RECIPES["cpu"].things))


def test_no_prompt_is_longer_than_the_model_reads():
    longest = max(len(prompt.replace(",", " ,").split()) for _, prompt, _ in ASKED["cpu"])
    assert longest < T5_LENGTH


def test_nothing_held_out_is_ever_trained(stock):
    rng = np.random.default_rng(0)
    assert not any(is_held_out(random_scene(rng, stock)) for _ in range(3000))


def test_training_asks_for_every_kind_of_scene(stock):
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, stock) for _ in range(2000)]
    assert any(scene.face is not None for scene in scenes)
    assert any(scene.place is not None for scene in scenes)
    assert {scene.relation for scene in scenes} == {None, "left", "above"}
    assert any(f.colour is not None for scene in scenes for f in scene.figures)


def test_captions_depend_on_the_seed_alone(stock):
    def spoken(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        return [caption(random_scene(rng, stock), rng, stock) for _ in range(200)]

    assert spoken(1) == spoken(1) != spoken(2)
