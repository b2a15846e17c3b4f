"""Ranks for which there is no room are refused, or warned of, before any is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fluxline.cli import app
from fluxline.cli.room import check_shares, cores, crowd, crowds
from fluxline.degrees import degrees_of
from fluxline.errors import ConfigError
from fluxline.settings import Settings
from fluxline.worker.place import Place

ROOT = Path(__file__).parents[2]
MANY = 256  # more ranks than a machine has cores that these tests run on
NOTHING_FOR_SOME = [
    ("stages=9", "stages=9 needs a block for each rank; mini has 5"),
    ("tensor=5", "tensor=5 needs a head of attention for each rank; mini has 4"),
]


@pytest.mark.parametrize("command", [("serve",), ("generate", "a fox")])
@pytest.mark.parametrize(("said", "why"), NOTHING_FOR_SOME)
def test_ranks_that_would_have_nothing_of_a_model_are_refused(command, said, why):
    result = CliRunner().invoke(app, [*command, "--device", "cpu", "--parallel", said])

    assert result.exit_code == 2
    assert why in result.output


def test_as_many_ranks_as_a_model_has_shares_are_let_through():
    for said in ("stages=5", "tensor=4", "ulysses=16", "cfg=9,stages=5"):
        check_shares("mini", degrees_of(said))


def test_each_rank_with_a_core_is_no_crowd():
    assert crowd(2, 2) == ""
    assert crowd(8, 2) == "8 ranks on 2 cores: slower than fewer"
    assert crowd(2, 1) == "2 ranks on 1 core: slower than fewer"


def no_cards(cards):
    return ""


def two_cards(cards):
    return "2x80GB-nvlink"


def never(cards):
    raise AssertionError("asked")


def broken(cards):
    raise ConfigError("parallel: the cards cannot be looked at")


@pytest.mark.parametrize(
    ("options", "look"),
    [
        ({"parallel": f"ulysses={MANY}", "device": "cpu"}, never),
        ({"parallel": f"ulysses={MANY}"}, no_cards),
        ({"parallel": f"data={MANY // 2},cfg=2"}, no_cards),
    ],
)
def test_a_profile_with_more_ranks_than_cores_is_told_of(options, look):
    words = f"mini: {MANY} ranks on {cores()} cores: slower than fewer"
    assert crowds(Settings(**options), None, look) == [words.replace("1 cores", "1 core")]


@pytest.mark.parametrize(
    ("options", "look"),
    [
        ({"parallel": f"ulysses={MANY}"}, two_cards),
        ({"parallel": f"ulysses={MANY}", "device": "cuda"}, never),
        ({}, never),
    ],
)
def test_cards_and_few_ranks_are_no_crowd(options, look):
    assert crowds(Settings(**options), None, look) == []


def test_cards_are_looked_at_once_for_all_profiles():
    looks = []
    profiles = {"one": {"devices": [*range(MANY)]}, "other": {}, "near": {"device": "cpu"}}

    def look(cards):
        looks.append(cards)
        return ""

    found = crowds(Settings(parallel=f"ulysses={MANY}", profiles=profiles), None, look)
    assert [words.partition(":")[0] for words in found] == ["one", "other", "near"]
    assert looks == [()]


def test_cards_that_cannot_be_looked_at_keep_nothing_from_being_started():
    profiles = {"open": {}, "near": {"device": "cpu"}}
    (words,) = crowds(Settings(parallel=f"ulysses={MANY}", profiles=profiles), None, broken)
    assert words.startswith("near: ")


def test_of_ranks_on_several_machines_those_of_this_one_count():
    settings = Settings(parallel=f"ulysses={MANY}", device="cpu")
    alone = Place(rank=0, size=MANY, local_rank=0, local_size=1)
    together = Place(rank=0, size=MANY, local_rank=0, local_size=MANY)

    assert crowds(settings, alone, never) == []
    assert len(crowds(settings, together, never)) == 1


@pytest.mark.parametrize("command", [("serve", "--data", "data"), ("generate", "a fox")])
def test_a_crowd_is_said_once_before_any_rank_is_started(command, tmp_path):
    """A folder that is found to be none keeps ranks from being started, but not from being told
    of."""
    options = ("--device", "cpu", "--parallel", f"ulysses={MANY}")
    done = subprocess.run(
        [sys.executable, "-m", "fluxline", *command, *options],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "FLUXLINE_LORAS": str(tmp_path / "none"),
            "COLUMNS": "1000",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 2, done.stderr
    said, why = done.stderr.splitlines()
    assert f": {MANY} ranks on " in said
    assert "loras must name a folder" in why
