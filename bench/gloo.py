"""Ranks on this machine's cores, for as long as one function takes: processes that meet over gloo.

Each has one thread and one core: rank k the k-th of those this process may use, in turn where ranks
are more. What gloo does for a rank, its core does too.
"""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def on_ranks(count: int, function: Callable[..., T], *given: object) -> list[T]:
    """What a function of some module gives on so many ranks at once, in their order.

    Raises RuntimeError with the traceback of the first that fails.
    """
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=_be_rank,
                args=(rank, count, f"file://{folder}/meeting", told, function, given),
                daemon=True,
            )
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        try:
            answers = {}
            while len(answers) < count:
                rank, answer, fault = told.get()
                if fault is not None:
                    raise RuntimeError(f"rank {rank}:\n{fault}")
                answers[rank] = answer
            for process in processes:
                process.join()
        finally:
            for process in processes:
                process.kill()
    return [answers[rank] for rank in range(count)]


def _be_rank(
    rank: int,
    count: int,
    meeting: str,
    told: Any,
    function: Callable[..., object],
    given: tuple[object, ...],
) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
        with torch.inference_mode():
            answer = function(*given)
        dist.barrier()  # who goes early hangs up on those who still work
        told.put((rank, answer, None))
        dist.destroy_process_group()
    except Exception:  # noqa: BLE001 - told to who asked
        told.put((rank, None, traceback.format_exc()))
