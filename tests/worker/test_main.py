"""What a worker is told on its command line."""

import multiprocessing
import os
from pathlib import Path

import pytest

from fluxline.fleet.process import WorkerCommand
from fluxline.worker.__main__ import _open, keep_to, parser


def _cores(member: int, members: int) -> set[int]:
    keep_to(member, members)
    return os.sched_getaffinity(0)


@pytest.mark.parametrize("members", [1, 2, 3])
def test_workers_share_the_cores_and_none_is_left_out(members):
    all_cores = os.sched_getaffinity(0)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        shares = [pool.apply(_cores, (member, members)) for member in range(members)]
    assert set().union(*shares) == all_cores
    if members <= len(all_cores):
        assert sum(map(len, shares)) == len(all_cores)


def told(model, device, on_lost, **more):
    """An engine factory that gives back what it was told."""
    return model, device, more


def test_an_engine_is_opened_as_the_command_line_says():
    command = WorkerCommand(
        model="mini",
        device="cpu",
        precision="nf4",
        memory="stream",
        weights_gb=1.5,
        engine="tests.worker.test_main:told",
        loras="/loras",
        lora_bytes=7,
        fetches_loras=True,
    )
    spelt = command.argv(fd=3)
    options = parser().parse_args(spelt[spelt.index("fluxline.worker") + 1 :])

    assert _open(options) == (
        "mini",
        "cpu",
        {
            "precision": "nf4",
            "memory": "stream",
            "weights_gb": 1.5,
            "loras": Path("/loras"),
            "lora_bytes": 7,
            "fetches_loras": True,
        },
    )
