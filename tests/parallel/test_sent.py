"""What the formulas say is sent is what the published table says, and what is counted."""

from dataclasses import replace

import pytest
import torch

from fluxline.degrees import Degrees, degrees_of
from fluxline.parallel.crew import Crew
from fluxline.parallel.mesh import Mesh
from fluxline.parallel.network import DEV
from fluxline.parallel.pipefusion import sent_of
from fluxline.parallel.sent import sent
from fluxline.parallel.stale import DistriFusion, Piflux
from fluxline.parallel.way import Way
from tests.parallel.test_sequence import CONFIG, split
from tests.parallel.test_stale import EVALUATIONS, turned

SMALL = replace(
    DEV,
    double=CONFIG.depth_double,
    single=CONFIG.depth_single,
    hidden=CONFIG.hidden,
    heads=CONFIG.heads,
    channels=CONFIG.out_channels,
    text_tokens=7,
    value_bytes=4,
)
ALL_REDUCES = 114 / 76
"""The table has two of them in every layer; a single block needs one."""
TABLE = {  # px, ranks: MB of TP, ring, ulysses, USP with pairs, a boundary, piflux
    (1024, 2): (3228, 1614, 1614, 1614, 28.3, 0.26),
    (1024, 4): (4841, 2421, 1210, 1614, 28.3, 0.39),
    (1024, 8): (5648, 2824, 706, 1614, 28.3, 0.46),
    (2048, 4): (17751, 8876, 4438, 5917, 103.8, 1.6),
    (2048, 8): (20710, 10355, 2589, 5917, 103.8, 1.8),
}


@pytest.mark.parametrize(("side", "count"), TABLE)
def test_the_formulas_give_the_published_table(side, count):
    tensor, ring, ulysses, both, boundary, steady = TABLE[side, count]
    image = DEV.image_tokens(side, side)

    def megabytes(part, approximation=None, *, synchronous=True, **degrees):
        way = Way(degrees=Degrees(**degrees), approximation=approximation)
        told = sent(DEV, way, image=image, is_synchronous=synchronous)
        return sum(getattr(told, name) for name in part.split()) / 1e6

    def steadily(part, approximation):
        return megabytes(part, approximation, synchronous=False, ulysses=count)

    assert ALL_REDUCES * megabytes("tensor", tensor=count) == pytest.approx(tensor, abs=0.5)
    assert megabytes("ring", ring=count) == pytest.approx(ring, abs=0.5)
    assert megabytes("keys", "piflux", ulysses=count) == pytest.approx(ring, abs=0.5)
    assert steadily("keys", "distrifusion") == pytest.approx(ring, abs=0.5)
    assert megabytes("ulysses", ulysses=count) == pytest.approx(ulysses, abs=0.5)
    usp = megabytes("ulysses ring", ulysses=2, ring=count // 2)
    assert usp == pytest.approx(both, abs=0.5)
    assert steadily("stages", "pipefusion") == pytest.approx(boundary, abs=0.05)
    assert steadily("keys velocity", "piflux") == pytest.approx(steady, abs=0.05)


@pytest.mark.parametrize("shape", [(1, 7, 16), (2, 7, 29), (1, 7, 2)])
@pytest.mark.parametrize(
    "parallel", ["ulysses=2", "ulysses=3", "ulysses=4", "ring=2", "ring=3", "ulysses=2,ring=2"]
)
def test_ranks_send_what_the_formulas_say(parallel, shape, ranks):
    rows, _, image = shape
    degrees = degrees_of(parallel)
    told = ranks.run(degrees.ranks, split, parallel, *shape)

    assert [counted for _, counted in told] == [
        sent(
            SMALL, Way(degrees=degrees), image=image, rows=rows, rank=rank, is_synchronous=True
        ).total
        for rank in range(degrees.ranks)
    ]


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("synchronous", [1, 3])
@pytest.mark.parametrize("kind", [Piflux, DistriFusion])
def test_approximations_send_what_the_formulas_say(kind, synchronous, count, ranks):
    way = Way(degrees=Degrees(ulysses=count), approximation=kind.__name__.lower())
    told = ranks.run(count, turned, kind, count, {"synchronous": synchronous})

    def predicted(rank, evaluation):
        is_synchronous = evaluation < synchronous
        wandered = max(0, evaluation - synchronous) if kind is Piflux else 0
        part = (rank + wandered) % count
        return sent(SMALL, way, image=29, rows=2, rank=part, is_synchronous=is_synchronous).total

    assert [counted for _, _, counted in told] == [
        sum(predicted(rank, evaluation) for evaluation in range(EVALUATIONS))
        for rank in range(count)
    ]


def drawn_together(rows, image):
    """What this rank sends so that everybody has all rows."""
    mesh = Mesh.join(Degrees(cfg=2))
    crew = Crew(mesh)
    crew.evaluate(rows, lambda own: torch.zeros(rows, image, SMALL.channels)[own])
    return mesh.traffic.bytes


@pytest.mark.parametrize("rows", [2, 3])
def test_groups_of_rows_send_what_the_formula_says(rows, ranks):
    way = Way(degrees=Degrees(cfg=2))
    assert ranks.run(2, drawn_together, rows, 29) == [
        sent(SMALL, way, image=29, rows=rows, rank=rank, is_synchronous=True).total
        for rank in range(2)
    ]


def test_replicas_send_nothing():
    way = Way(degrees=Degrees(data=8))
    assert sent(DEV, way, image=4096, is_synchronous=True).total == 0


def test_stages_send_what_the_pipeline_counts_and_the_last_the_picture_in_float32():
    way = Way(degrees=Degrees(ulysses=4), approximation="pipefusion")
    told = [sent(DEV, way, image=4096, rank=rank, is_synchronous=False) for rank in range(4)]
    boundary = sent_of(4096 + DEV.text_tokens, DEV.hidden, DEV.value_bytes)
    assert [one.total for one in told] == [boundary] * 3 + [4096 * 64 * 4]
