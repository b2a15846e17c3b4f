"""What `auto` means on a machine, and that it is said why."""

import pytest

from fluxline.degrees import Degrees
from fluxline.errors import ConfigError
from fluxline.parallel.choice import Wish, for_picture, for_server

DEV = Wish(model="flux1-dev")


def test_without_cards_one_rank_draws():
    choice = for_picture(DEV, "")
    assert choice.degrees == Degrees()
    assert str(choice) == "parallel auto: one rank: no cards are here"


def test_one_picture_is_cut_by_heads_on_fast_links_with_the_reason():
    choice = for_picture(DEV, "4x80GB-nvlink")
    assert choice.degrees == Degrees(ulysses=4)
    assert "24 heads divide by it" in choice.why
    assert "4x80GB-nvlink" in choice.why


def test_true_guidance_takes_two_groups():
    assert for_picture(Wish(model="flux1-dev", is_steered=True), "2x80GB-nvlink").degrees.cfg == 2


def test_a_picture_has_the_models_own_steps_unless_it_says():
    hasty = for_picture(Wish(model="flux1-dev", steps=1), "8x48GB-pcie")
    assert hasty.degrees == Degrees(ulysses=8)
    usual = for_picture(Wish(model="flux1-dev", steps=28), "8x48GB-pcie")
    assert for_picture(DEV, "8x48GB-pcie") == usual
    assert usual.degrees == Degrees(ulysses=4)


def test_stages_are_chosen_where_only_they_fit_and_nothing_approximate():
    choice = for_picture(DEV, "16x16GB-pcie+4nodes")
    assert choice.degrees == Degrees(stages=8)
    assert choice.why.startswith("whole weights take 35.9 GB of a card that has 16.1 GB")


def test_weights_in_fewer_bits_need_not_be_cut():
    assert for_picture(DEV, "2x30GB-nvlink").degrees.tensor == 2
    fewer = for_picture(Wish(model="flux1-dev", precision="nf4"), "2x30GB-nvlink")
    assert fewer.degrees == Degrees(ulysses=2)


def test_a_server_has_as_many_replicas_as_cards_are_left_for():
    choice = for_server(DEV, "8x48GB-pcie")
    assert choice.degrees == Degrees(ulysses=4, data=2)
    assert choice.why.endswith("2 replicas of 4")


def test_a_server_that_is_told_its_replicas_divides_the_cards_among_them():
    assert for_server(DEV, "8x80GB-nvlink", 4).degrees == Degrees(ulysses=2, data=4)


def test_replicas_keep_the_nodes_that_their_cards_lie_on():
    choice = for_server(DEV, "6x80GB-nvlink+2nodes", 2)
    assert choice.degrees == Degrees(ulysses=3, data=2)
    assert choice.why.endswith("(6x80GB-nvlink+2nodes, predicted); 2 replicas of 3")


@pytest.mark.parametrize(
    ("wish", "machine", "why"),
    [
        (Wish(model="./my-flux"), "2x80GB-nvlink", "what ./my-flux costs is not known"),
        (Wish(model="flux1-dev", memory="stream"), "2x80GB-nvlink", "memory stream is of one"),
        (DEV, "2x8GB-pcie", "takes 25.2 GB of a card"),
    ],
)
def test_what_cannot_be_divided_or_judged_is_drawn_by_a_replica_a_card(wish, machine, why):
    choice = for_server(wish, machine)
    assert choice.degrees == Degrees(data=2)
    assert why in choice.why


def test_all_ranks_that_are_there_draw():
    few = for_picture(DEV, "8x48GB-pcie")
    assert few.degrees.ranks == 4
    assert for_picture(DEV, "8x48GB-pcie", ranks=8).degrees.ranks == 8
    assert for_picture(DEV, "", ranks=3).degrees == Degrees(ulysses=3)


def test_ranks_that_no_exact_way_fits_are_refused():
    with pytest.raises(ConfigError):
        for_picture(DEV, "2x8GB-pcie", ranks=2)
