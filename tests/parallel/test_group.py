"""A group of ranks waits for one that does not come, and not for ever."""

import time

import pytest
import torch
import torch.distributed as dist

from fluxline.parallel.group import Group

PATIENCE_S, AWAY_S = 1.0, 4.0
VERBS = {
    "swap": lambda group: group.swap([torch.ones(1), torch.ones(1)], [(1,), (1,)]),
    "sum": lambda group: group.sum(torch.ones(1)),
}


def waited(verb):
    """How long the first rank waits for the second, which is away."""
    group = Group((0, 1), patience_s=PATIENCE_S)
    group.greet(torch.device("cpu"))
    dist.barrier()
    if group.rank == 1:
        time.sleep(AWAY_S)
        return None
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="Timed out"):
        VERBS[verb](group)
    return time.monotonic() - began


@pytest.mark.parametrize("verb", VERBS)
def test_an_exchange_waits_as_long_as_its_group_says(verb, ranks):
    wait_s, _ = ranks.run(2, waited, verb)
    assert PATIENCE_S <= wait_s < AWAY_S
