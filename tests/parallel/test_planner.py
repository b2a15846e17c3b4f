"""Which way is chosen where, and that it is said why."""

import pytest

from fluxline.degrees import Degrees
from fluxline.errors import ConfigError
from fluxline.parallel.cost import cost
from fluxline.parallel.machine import machine_of
from fluxline.parallel.network import DEV, SCHNELL
from fluxline.parallel.planner import plan
from fluxline.parallel.way import Task, Way


def planned(machine, network=DEV, *, side=1024, pictures=1, steps=None, asked=None, **more):
    task = Task(width=side, height=side, steps=steps or network.steps, pictures=pictures, **more)
    return plan(network, machine_of(machine), task, asked=asked)


def test_one_card_draws_alone_and_needs_no_reason():
    made = planned("1x80GB-nvlink")
    assert made.degrees == Degrees()
    assert made.why == ()
    assert made.chosen == made.alone


@pytest.mark.parametrize("cards", [2, 4, 8])
@pytest.mark.parametrize("link", ["nvlink", "pcie"])
def test_many_pictures_have_a_replica_each(cards, link):
    made = planned(f"{cards}x80GB-{link}", pictures=8)
    assert made.degrees == Degrees(data=cards)
    assert f"8 pictures: data={cards}" in made.why[0]


def test_more_cards_than_pictures_share_them():
    assert planned("8x80GB-nvlink", pictures=4).degrees == Degrees(data=4, ulysses=2)


@pytest.mark.parametrize("cards", [2, 3, 4, 6, 8])
def test_one_picture_on_fast_links_is_cut_by_heads(cards):
    made = planned(f"{cards}x80GB-nvlink")
    assert made.degrees == Degrees(ulysses=cards)
    assert f"ulysses={cards}: 24 heads divide by it" in made.why[0]
    assert f"ring={cards} would take" in made.why[1]


def test_a_ring_joins_what_heads_are_too_few_for():
    made = planned("64x80GB-nvlink+8nodes", side=4096)
    assert made.degrees.ring > 1
    assert made.degrees.ulysses > 1
    assert any("keys go around" in why for why in made.why)


def test_cards_that_would_hardly_help_are_left_alone():
    made = planned("16x48GB-pcie+2nodes")
    assert made.degrees == Degrees(ulysses=4)
    assert any(why.startswith("12 of 16 cards are left for other pictures") for why in made.why)


def test_true_guidance_takes_two_groups_first():
    made = planned("8x80GB-nvlink", is_steered=True)
    assert made.degrees == Degrees(cfg=2, ulysses=4)
    assert made.why[0].startswith("true guidance: cfg=2")
    assert planned("2x80GB-nvlink", is_steered=True).degrees == Degrees(cfg=2)


def test_weights_are_cut_only_where_they_do_not_fit():
    small, large = planned("4x24GB-pcie"), planned("4x48GB-pcie")
    assert small.degrees == Degrees(ulysses=2, tensor=2)
    assert small.why[0].startswith("whole weights take 34.8 GB of a card that has 24.7 GB")
    assert large.degrees.tensor == 1


@pytest.mark.parametrize("machine", ["4x24GB-pcie", "8x48GB-pcie"])
def test_on_slow_links_pipefusion_is_suggested_and_not_chosen(machine):
    made = planned(machine)
    assert made.chosen.way.approximation is None
    assert made.suggested is not None
    assert made.suggested.way.approximation == "pipefusion"
    assert made.suggested.seconds < made.chosen.seconds / 1.1
    assert made.why[-1].startswith("pipefusion on ")
    assert "only who asks for it gets it, of --parallel stages=" in made.why[-1]


def test_with_few_evaluations_nothing_is_suggested():
    assert planned("4x24GB-pcie", SCHNELL).suggested is None
    assert planned("8x48GB-pcie", steps=19).suggested is None


def test_stages_are_chosen_only_where_whole_weights_do_not_fit():
    made = planned("16x16GB-pcie+4nodes")
    assert made.chosen.way.approximation is None
    assert made.degrees.stages > 1
    assert made.why[0].startswith("whole weights take 3")
    assert made.suggested.way.approximation == "pipefusion"
    assert planned("16x80GB-pcie+4nodes").degrees.stages == 1


def test_a_picture_takes_as_long_in_stages_as_on_one_card_and_what_is_handed_on():
    machine = machine_of("4x24GB-pcie")
    task = Task(width=1024, height=1024, steps=28)
    alone = cost(DEV, machine, task, Way()).seconds
    staged = cost(DEV, machine, task, Way(degrees=Degrees(stages=4), bands=1)).seconds
    assert (staged.products, staged.attention) == (alone.products, alone.attention)
    assert 0 < staged.exchange < 0.1 * alone.total


def test_where_nothing_fits_it_says_what_would_be_needed():
    with pytest.raises(ConfigError, match=r"FLUX.1-dev takes 1\d\.\d GB .* 11\.8 GB are there"):
        planned("4x12GB-pcie")


def test_what_is_asked_for_is_planned_and_named_as_not_exact():
    made = planned("4x80GB-nvlink", asked="piflux")
    assert made.chosen.way == Way(degrees=Degrees(ulysses=4), approximation="piflux", bands=4)
    assert "it is not exact" in made.why[0]


def test_piflux_is_never_chosen_by_itself():
    for machine in ("8x48GB-pcie", "16x16GB-pcie+4nodes", "64x80GB-nvlink+8nodes"):
        made = planned(machine)
        assert made.chosen.way.approximation != "piflux"
        assert made.suggested is None or made.suggested.way.approximation == "pipefusion"


def test_piflux_takes_no_more_parts_than_its_keys_may_be_old():
    assert planned("8x80GB-nvlink", asked="piflux", steps=8).chosen.way.parts == 2
    with pytest.raises(ConfigError, match="piflux needs 8 evaluations at the least"):
        planned("8x80GB-nvlink", SCHNELL, asked="piflux")
    with pytest.raises(ConfigError, match="piflux needs two cards at the least"):
        planned("1x80GB-nvlink", asked="piflux")


@pytest.mark.parametrize("machine", ["5x48GB-pcie", "6x80GB-nvlink", "12x80GB-nvlink+3nodes"])
@pytest.mark.parametrize("pictures", [1, 3, 7])
def test_a_plan_fits_its_machine(machine, pictures):
    there, made = machine_of(machine), planned(machine, pictures=pictures)
    assert made.chosen.way.ranks <= there.cards
    assert there.cards % made.degrees.ranks == 0
    assert made.chosen.cost.memory.total <= there.usable_bytes
    assert made.chosen.seconds <= made.alone.seconds
