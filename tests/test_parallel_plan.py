"""docs/parallel.md says what the planner says, and the cost model what others have measured."""

import pytest

from bench.parallel_plan import DOCS, documents
from bench.published import FIGURES, FITTED, exact_ways, machine, misfit, predicted
from fluxline.degrees import Degrees
from fluxline.parallel.cost import cost
from fluxline.parallel.machine import NVLINK, PCIE
from fluxline.parallel.network import DEV, SCHNELL
from fluxline.parallel.way import Task, Way

WRITTEN = documents()


@pytest.mark.parametrize("name", WRITTEN)
def test_tables_and_plots_are_those_of_the_planner(name):
    said = (DOCS / name).read_text("utf-8")
    assert said == WRITTEN[name], "write them anew: python -m bench.parallel_plan"


def seconds(card, way, network=DEV, *, side=1024, steps=28):
    task = Task(width=side, height=side, steps=steps)
    return cost(network, machine(card), task, way).seconds.total


def split(count, axis="ulysses"):
    return Way(degrees=Degrees(**{axis: count}))


def staged(count):
    """As xDiT has it: as many patches as stages."""
    return Way(degrees=Degrees(ulysses=count), approximation="pipefusion", patches=count)


@pytest.mark.parametrize(
    ("card", "are_evaluations"),
    [("H100 compiled", False), ("A100 compiled", False), ("L20", True)],
)
def test_figures_are_predicted_in_their_order(card, are_evaluations):
    figures = [
        one
        for one in FIGURES
        if (one.machine, one.network, one.is_evaluation) == (card, DEV, are_evaluations)
    ]
    assert len(figures) >= 3
    by_published = sorted(figures, key=lambda one: one.seconds)
    assert sorted(figures, key=predicted) == by_published


@pytest.mark.parametrize("count", [2, 4, 8])
def test_pipefusion_is_the_fastest_single_way_on_l40(count):
    ways = [split(count), split(count, "ring")]
    assert seconds("L40", staged(count)) < min(seconds("L40", way) for way in ways)


def test_ulysses_loses_beyond_four_cards_on_pcie():
    assert seconds("L40", split(8)) > seconds("L40", split(4))
    schnell = {
        count: min(seconds("L40", way, SCHNELL, steps=4) for way in exact_ways(count))
        for count in (1, 4, 8)
    }
    assert schnell[4] < schnell[8] < schnell[1]


def test_a_ring_over_two_slow_nodes_is_slower_than_one_card():
    assert seconds("2x8 L40", split(16, "ring")) > 3 * seconds("2x8 L40", Way())


def test_on_nvlink_ulysses_is_the_fastest_and_a_ring_the_slowest_of_eight():
    ulysses, ring = seconds("A100 eager", split(8)), seconds("A100 eager", split(8, "ring"))
    assert ulysses < seconds("A100 eager", staged(8)) < ring


@pytest.mark.parametrize("name", FITTED)
def test_no_constant_fits_better_when_it_is_turned(name):
    least = misfit(FITTED)
    for factor in (0.85, 1.15):
        assert misfit({**FITTED, name: FITTED[name] * factor}) > 0.99 * least


@pytest.mark.parametrize(("kind", "card"), [(PCIE, "L40"), (NVLINK, "H100 eager")])
def test_machines_are_planned_with_fitted_constants(kind, card):
    assert kind.flops == FITTED[f"{card} flops"]
    assert kind.block_s == FITTED[f"{card} block_s"]
    assert (kind.vae_share, kind.hop_share) == (FITTED["vae_share"], FITTED["hop_share"])
    assert NVLINK.links[0].bytes_per_s == FITTED["nvlink"]
    assert PCIE.links[-1].bytes_per_s == FITTED["nodes"]
