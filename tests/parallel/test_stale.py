"""piflux and DistriFusion: exact where they shall be, and as stale as is said elsewhere."""

import pytest
import torch

from fluxline.degrees import Degrees
from fluxline.parallel.mesh import Mesh
from fluxline.parallel.sequence import Cut, SplitTransformer
from fluxline.parallel.stale import DistriFusion, Piflux
from tests.parallel.test_sequence import CONFIG, forward, transformer

EVALUATIONS = 9
HEADS, WIDTH = 2, 16


def turned(kind, count, options):
    """Velocities of several evaluations, each rank's bytes held at the end."""
    model = transformer()
    mesh = Mesh.join(Degrees(ulysses=count))
    split = SplitTransformer(model, mesh)
    split.turn = kind(mesh.sequence, **options)
    answers = [forward(model, split, 2, 7 + 0 * k, 29) for k in range(EVALUATIONS)]
    held = split.turn.bytes
    split.turn.close()
    return answers, held, mesh.traffic.bytes


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Piflux, {"synchronous": EVALUATIONS}),
        (Piflux, {"synchronous": 2, "every": 1}),
        (DistriFusion, {"synchronous": EVALUATIONS}),
    ],
)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_with_every_evaluation_synchronous_it_is_exact(kind, options, count, ranks):
    model = transformer()
    with torch.inference_mode():
        whole = forward(model, model, 2, 7, 29)

    for answers, _, _ in ranks.run(count, turned, kind, count, options):
        for answer in answers:
            assert (answer - whole).abs().max() <= 1e-5 * whole.abs().max()


def seen(kind, count, options):
    """For each evaluation, the evaluation of which each part's keys are, as this rank has them.

    With queries of nothing all keys weigh the same; a part's values say when they were made, in a
    channel of the part's own.
    """
    mesh = Mesh.join(Degrees(ulysses=count))
    turn = kind(mesh.sequence, **options)
    cut = Cut.of(7, 29, count)
    told = []
    for evaluation in range(EVALUATIONS):
        turn.begin(cut)
        part = turn.parts[mesh.sequence.rank]
        q = torch.zeros(1, HEADS, cut.lengths[part], WIDTH)
        v = torch.zeros_like(q)
        v[..., part] = evaluation
        mean = turn.attend(q, torch.ones_like(q), v)[0, 0]
        told.append([round(mean[p].item() * 36 / cut.lengths[p], 3) for p in range(count)])
    turn.close()
    return told


@pytest.mark.parametrize("count", [2, 3, 4])
def test_ages_of_piflux_are_those_of_its_definition(count, ranks):
    synchronous = 2
    for rank, told in enumerate(
        ranks.run(count, seen, Piflux, count, {"synchronous": synchronous})
    ):
        known = [synchronous - 1] * count
        for evaluation in range(synchronous, EVALUATIONS):
            known[(rank + evaluation - synchronous) % count] = evaluation
            assert told[evaluation] == known
        assert sorted(evaluation - then for then in known) == list(range(count))


@pytest.mark.parametrize("every", [2, 3])
def test_piflux_knows_all_anew_each_so_many_evaluations(every, ranks):
    options = {"synchronous": 2, "every": every}
    for rank, told in enumerate(ranks.run(3, seen, Piflux, 3, options)):
        known = [1] * 3
        for evaluation in range(2, EVALUATIONS):
            known[(rank + evaluation - 2) % 3] = evaluation
            if (evaluation - 1) % every == 0:
                known = [evaluation] * 3
            assert told[evaluation] == known


@pytest.mark.parametrize("count", [2, 3])
def test_distrifusion_is_one_evaluation_behind(count, ranks):
    for rank, told in enumerate(ranks.run(count, seen, DistriFusion, count, {"synchronous": 2})):
        for evaluation in range(2, EVALUATIONS):
            others = [evaluation - 1] * count
            others[rank] = evaluation
            assert told[evaluation] == others


@pytest.mark.parametrize("count", [2, 3])
def test_what_is_held_and_sent_is_what_the_formulas_say(count, ranks):
    layers, wide = CONFIG.depth_double + CONFIG.depth_single, CONFIG.hidden
    keys = 2 * 2 * 36 * wide * 4 * layers  # keys and values, rows, tokens, floats
    velocity = EVALUATIONS * 2 * 29 * CONFIG.out_channels * 4
    told = ranks.run(count, turned, Piflux, count, {"synchronous": 1})

    assert [held for _, held, _ in told] == [keys] * count
    assert sum(sent for _, _, sent in told) == (keys + velocity) * (count - 1)
