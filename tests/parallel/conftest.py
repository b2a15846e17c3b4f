"""Four processes on gloo that run what tests give them, kept for the whole session."""

import itertools
import multiprocessing
import tempfile
import traceback

import pytest
import torch
import torch.distributed as dist

WORLD = 4
ANSWER_S = 200  # the first time a process imports what opens models


class Ranks:
    """Runs a function on so many ranks at once, in a world of their own."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._asked = [context.Queue() for _ in range(WORLD)]
        self._told = context.Queue()
        self._numbers = itertools.count()
        self._processes = [
            context.Process(target=serve, args=(rank, asked, self._told), daemon=True)
            for rank, asked in enumerate(self._asked)
        ]
        for process in self._processes:
            process.start()

    def run(self, count, function, *given):
        """What the function gave on each of the first `count` ranks, in their order."""
        meeting = f"file://{self._folder.name}/{next(self._numbers)}"
        for asked in self._asked[:count]:
            asked.put((count, meeting, function, given))
        answers = {}
        while len(answers) < count:
            rank, answer, fault = self._told.get(timeout=ANSWER_S)
            assert fault is None, f"rank {rank}:\n{fault}"
            answers[rank] = answer
        return [answers[rank] for rank in range(count)]

    def close(self):
        for asked in self._asked:
            asked.put(None)
        for process in self._processes:
            process.join(10)
            process.kill()
        self._folder.cleanup()


def serve(rank, asked, told):
    torch.set_num_threads(1)
    while (task := asked.get()) is not None:
        count, meeting, function, given = task
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
        try:
            with torch.inference_mode():
                answer = function(*given)
            dist.barrier()  # who goes early hangs up on those who still come together
            told.put((rank, answer, None))
        except Exception:  # noqa: BLE001 - told to the test
            told.put((rank, None, traceback.format_exc()))
        finally:
            dist.destroy_process_group()


@pytest.fixture(scope="session")
def ranks():
    ranks = Ranks()
    yield ranks
    ranks.close()
