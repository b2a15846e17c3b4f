"""What the first rank has the others do, in one process: each draws everything, and they agree."""

import socket
import threading
from copy import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fluxline import wire
from fluxline.engine.intake import Intake
from fluxline.engine.job import Plan
from fluxline.engine.loras import Library, LoraSources
from fluxline.engine.replay import Follower, Leader
from fluxline.engine.runner import Runner
from fluxline.engine.ticket import new_request
from fluxline.errors import DeviceLost, EngineError
from fluxline.parallel.crew import Crew
from tests.lora_files import bfl_layers, random_lora


class Pair:
    """Two ranks of one model; what one tells the other goes over a socket."""

    def __init__(self, model, folder=None, follower_model=None, follower_folder=None):
        self._here, self._there = socket.socketpair()
        follower_model = follower_model or model
        self.intake = self._intake(model, folder)
        self.runner = Runner(model, nobody)
        self.others = Runner(follower_model, nobody, shows=False)
        theirs = self._intake(follower_model, follower_folder or folder)
        self._follower = Follower(follower_model, self.others, theirs, Crew.alone())
        self.leader = Leader(self.runner, self._tell)

    def _intake(self, model, folder):
        library = Library(model, LoraSources(folder=folder, paths=False, fetch=False))
        return Intake(model.spec, library.mix, is_technical=False)

    def _tell(self, message):
        sending = threading.Thread(target=self._here.sendall, args=(wire.frame(message),))
        sending.start()  # it may be larger than what the socket holds
        self._follower.obey(wire.receive_to_rank(self._there))
        sending.join()

    def run(self, jobs, evaluations):
        """Admit jobs and evaluate them so often."""
        self.leader.execute(Plan(admit=tuple(jobs), evaluate=tuple(jobs)))
        for _ in range(evaluations - 1):
            self.leader.execute(Plan(evaluate=tuple(jobs)))

    def close(self):
        for runner in (self.runner, self.others):
            runner.close()
        self._here.close()
        self._there.close()


def nobody():
    raise AssertionError("nothing is scored")


@pytest.fixture
def pair(schnell):
    made = []

    def make(*given, model=schnell, **named):
        made.append(Pair(model, *given, **named))
        return made[-1]

    yield make
    for one in made:
        one.close()


def asked(prompt="a fox", seed=3, n=1, **params):
    return new_request(prompt, n=n, seed=seed, params={"steps": 3, **params})


def samples(runner):
    """What a runner holds, by the ids of its jobs."""
    return {job_id: sample.x for job_id, sample in runner._samples.items()}


def agree(pair):
    ours, theirs = samples(pair.runner), samples(pair.others)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_all_ranks_hold_the_same_samples(pair):
    pair = pair()
    jobs = pair.intake.jobs_of(asked(n=3))

    pair.run(jobs[:2], 1)
    pair.leader.execute(Plan(admit=(jobs[2],), evaluate=tuple(jobs)))  # the request came before

    assert len(samples(pair.others)) == 3
    assert agree(pair)


class Blind:
    """A model that shows nothing before it is done."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        assert name != "preview"
        return getattr(self._model, name)


def test_the_first_rank_alone_draws_previews(pair, schnell, caplog):
    pair = pair(follower_model=Blind(schnell))
    job = pair.intake.jobs_of(replace(asked("a", steps=3), preview_every=1))[0]
    told = [pair.leader.execute(Plan(admit=(job,), evaluate=(job,)))]
    told += [pair.leader.execute(Plan(evaluate=(job,))) for _ in range(2)]

    assert [set(outcome.previews) for outcome in told] == 3 * [{job.id}]
    assert "no preview" not in caplog.text


def test_an_id_that_comes_again_in_the_plan_that_drops_it_is_the_new_request(pair):
    """As after a cancel: the scheduler drops the old and admits the new at one time."""
    pair = pair()
    first = asked("a fox", seed=3)
    (old,) = pair.intake.jobs_of(first)
    (new,) = pair.intake.jobs_of(replace(first, prompt="a red boat on a lake", seed=9))
    pair.run([old], 1)

    pair.leader.execute(Plan(drop=(old.id,), admit=(new,), evaluate=(new,)))
    pair.leader.execute(Plan(evaluate=(new,)))

    assert agree(pair)


def test_one_rank_that_refuses_a_job_says_so_before_it_is_evaluated(pair, schnell):
    def refuse(prompts):
        raise EngineError("this one alone")

    other = copy(schnell)
    other.encode = refuse
    evaluated = []
    first = copy(schnell)
    first.evaluate = lambda *given: evaluated.append(given)
    pair = pair(model=first, follower_model=other)
    jobs = tuple(pair.intake.jobs_of(asked()))

    with pytest.raises(DeviceLost, match=r"the first rank had .*, this one .*internal_error"):
        pair.leader.execute(Plan(admit=jobs, evaluate=jobs))
    assert not evaluated


@pytest.fixture
def folders(schnell, tmp_path):
    """Two folders, as two ranks may see one: a LoRA in it is another, the other the same."""
    sizes = bfl_layers(schnell.transformer.config)
    made = []
    for rank in range(2):
        made.append(tmp_path / str(rank))
        made[-1].mkdir()
        for name, seed in (("ink", rank), ("chalk", 7)):
            lora = random_lora(sizes, prefix="diffusion_model.", by=0.5, seed=seed)
            save_file(lora, made[-1] / f"{name}.safetensors")
    return made


def test_a_lora_that_another_rank_reads_otherwise_ends_it_by_name(pair, folders):
    pair = pair(*folders[:1], follower_folder=folders[1])
    jobs = pair.intake.jobs_of(asked(loras=(("chalk", 1.0), ("ink", 0.5))))
    (_, ours), (_, strength) = jobs[0].mix[1], jobs[0].mix[0]
    assert (ours, strength) == (0.5, 1.0)
    digest = jobs[0].mix[1][0].digest

    with pytest.raises(DeviceLost, match=rf"read LoRA 'ink' as {digest}, this one as (?!{digest})"):
        pair.run(jobs, 1)
    assert not samples(pair.runner)


def test_a_lora_that_all_read_alike_is_worn_by_all(pair, folders):
    pair = pair(*folders[:1], follower_folder=folders[1])
    worn = asked(loras=(("ink", 0.0), ("chalk", 1.0)))  # what has no effect may differ

    pair.run([*pair.intake.jobs_of(worn), *pair.intake.jobs_of(asked(seed=4))], 2)

    assert agree(pair)


def test_requests_larger_together_than_a_message_are_told_one_by_one(pair, monkeypatch):
    monkeypatch.setattr(wire, "FRAME_LIMIT", 3000)
    pair = pair()
    jobs = [job for k in range(4) for job in pair.intake.jobs_of(asked(f"{k} " + 1000 * "x"))]

    pair.run(jobs, 1)

    assert agree(pair)
