"""Ranks that `fluxline generate` draws with: started by torchrun, by anybody, or by the first."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from fluxline.cli import app
from fluxline.cli.ranks import degrees_asked, ways_asked
from fluxline.errors import ConfigError, InvalidParams
from fluxline.images import decode, read_recipe
from fluxline.worker.place import Place, beside, place_of

pytestmark = pytest.mark.timeout(400)  # processes that start and open models, several a test
ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
GENERATE = ("-m", "fluxline", "generate", "a red fox", "--seed", "7", "--device", "cpu")
MANY = ("-n", "1000", "-o", "fox.png")  # minutes of drawing
FREED_S = 20.0  # torchrun takes some of it to end
BUSY_S = 200.0  # nothing is claimed of how long it takes to start: it is some seconds
SECOND_OF_TWO = Place(rank=1, size=2, local_rank=1, local_size=2)


def variables(rank, size, local_rank=None, local_size=None):
    said = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank}
    said |= {"LOCAL_WORLD_SIZE": local_size}
    return {name: str(value) for name, value in said.items() if value is not None}


def test_who_was_not_started_as_a_rank_is_alone():
    assert place_of({"LOCAL_RANK": "0", "MASTER_ADDR": "here"}) is None


def test_a_rank_knows_its_place_on_its_own_machine():
    assert place_of(variables(5, 8, 1, 4)) == Place(rank=5, size=8, local_rank=1, local_size=4)


def test_without_local_numbers_a_rank_has_a_machine_of_its_own():
    assert place_of(variables(1, 2)) == Place(rank=1, size=2, local_rank=0, local_size=1)


@pytest.mark.parametrize("said", [("two", 2), (-1, 2), (2, 2), (0, 2, 1, 1), (0, 2, "x", 1)])
def test_a_place_that_cannot_be_is_refused(said):
    with pytest.raises(ConfigError, match=r"RANK must be a number|numbered from 0"):
        place_of(variables(*said))


@pytest.mark.parametrize(
    ("device", "own"),
    [("auto", "auto:1"), ("cuda", "cuda:1"), ("cuda:2", "cuda:3"), ("cpu", "cpu"), ("mps", "mps")],
)
def test_the_local_rank_picks_the_card(device, own):
    assert beside(device, 1) == own


def test_ranks_that_are_told_nothing_divide_the_tokens():
    assert degrees_asked("", SECOND_OF_TWO) == "ulysses=2"


def test_nobody_else_draws_where_nothing_is_said_and_none_were_started():
    assert degrees_asked("", None) == ""


def test_degrees_are_of_as_many_ranks_as_were_started():
    assert degrees_asked("cfg=2", SECOND_OF_TWO) == "cfg=2"
    with pytest.raises(ConfigError, match=r"'cfg=2,ring=2' is for 4 ranks; 2 were started"):
        degrees_asked("cfg=2,ring=2", SECOND_OF_TWO)


@pytest.mark.parametrize(
    ("said", "place", "degrees"),
    [
        (["piflux"], SECOND_OF_TWO, "ulysses=2"),
        (["pipefusion,sync=2"], SECOND_OF_TWO, "stages=2"),
        (["piflux", "ring=2"], SECOND_OF_TWO, "ring=2"),
        (["ulysses=3", "distrifusion"], None, "ulysses=3"),
        (["piflux", "auto"], None, "auto"),
    ],
)
def test_what_ranks_approximate_may_be_said_beside_how_many_they_are(said, place, degrees):
    ranks, asked = ways_asked(said, place)
    assert ranks == degrees
    assert asked.spelt in said


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (["piflux"], "takes several ranks: say how many beside"),
        (["piflux", "pipefusion"], "once for ranks and once"),
        (["ulysses=2", "ring=2"], "once for ranks and once"),
        (["piflux,sync=0", "ulysses=2"], "from 1 to 9999"),
    ],
)
def test_ways_that_cannot_be_are_refused(said, why):
    with pytest.raises((ConfigError, InvalidParams), match=why):
        ways_asked(said, None)


def test_replicas_are_a_servers():
    with pytest.raises(InvalidParams, match="data is of replicas"):
        degrees_asked("data=2", None)


@pytest.mark.parametrize("option", ["memory", "precision"])
def test_words_that_are_not_known_are_refused_before_a_rank_is_told(option, run):
    result = run("a fox", "--device", "cpu", "--parallel", "ulysses=2", f"--{option}", "bogus")

    assert result.exit_code == 2
    assert f"{option} must be one of auto, " in result.output
    assert "got 'bogus'" in result.output


@pytest.mark.parametrize("command", ["generate", "serve"])
def test_another_rank_says_nothing_and_ends_after_the_first_could_speak(command, monkeypatch):
    """torchrun ends all ranks as soon as one has ended."""
    monkeypatch.setattr("fluxline.cli.ranks.FIRST_S", 0.5)
    began = time.monotonic()
    result = CliRunner().invoke(
        app, [command, "--parallel", "ring=4"], env=variables(rank=1, size=2)
    )

    assert (result.exit_code, result.output) == (2, "")
    assert time.monotonic() - began >= 0.5


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a process in a folder of its own; ends it with all it has started."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
    monkeypatch.setenv("COLUMNS", "1000")
    started = []

    def start(*command, **variables):
        started.append(
            subprocess.Popen(
                [*map(str, command)],
                cwd=tmp_path,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
        process.communicate()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The picture that one process draws."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run(
        [sys.executable, *GENERATE, "-o", "fox.png"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        check=True,
        timeout=BUSY_S,
    )
    return decode((folder / "fox.png").read_bytes()).astype(int)


def is_like(folder, alone):
    return abs(decode((folder / "fox.png").read_bytes()) - alone).max() <= 1


def said_by(process, timeout_s=BUSY_S):
    said, _ = process.communicate(timeout=timeout_s)
    return said


def drawn(folder):
    """Wait until the first of many pictures is there."""
    over = time.monotonic() + BUSY_S
    while not list(folder.glob("fox-*.png")):
        assert time.monotonic() < over, "nothing was drawn"
        time.sleep(0.1)


def ranks_of(process):
    """The processes that draw, by their number."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    found = [psutil.Process(one.pid) for one in family]
    return {int(one.environ()["RANK"]): one for one in found if "RANK" in one.environ()}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def beside_the_crowd(said):
    """All lines but that two ranks are many, which a machine of one core is told."""
    return [line for line in said.splitlines() if "2 ranks on 1 core" not in line]


@pytest.mark.slow
def test_ranks_of_torchrun_draw_one_picture_and_the_first_alone_speaks(start, alone, tmp_path):
    process = start(
        *TORCHRUN, "--nproc_per_node=2", *GENERATE, "-o", "fox.png", "--print", OMP_NUM_THREADS="1"
    )
    said = said_by(process)

    assert process.returncode == 0, said
    assert is_like(tmp_path, alone)
    first, *picture = beside_the_crowd(said)
    assert first.startswith("fox.png  seed 7")
    assert "▀" in picture[0]
    assert said.count("fox.png") == 1


@pytest.mark.slow
def test_the_first_starts_the_others_where_nobody_has(start, alone, tmp_path):
    process = start(sys.executable, *GENERATE, "-o", "fox.png", "--parallel", "ring=2")
    said = said_by(process)

    assert process.returncode == 0, said
    assert is_like(tmp_path, alone)
    assert len(beside_the_crowd(said)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["piflux", "pipefusion"])
def test_ranks_of_torchrun_approximate_and_the_file_draws_itself_again(
    mode, start, alone, tmp_path
):
    command = (*TORCHRUN, "--nproc_per_node=2", *GENERATE, "--steps", "28", "-o", "fox.png")
    process = start(*command, "--parallel", f"{mode},sync=2", OMP_NUM_THREADS="1")
    said = said_by(process)

    assert process.returncode == 0, said
    assert f"drawn by {mode},sync=2 on 2 ranks" in said
    fox = (tmp_path / "fox.png").read_bytes()
    assert read_recipe(fox).params.parallel.spelt == f"{mode},sync=2"
    again = start(
        sys.executable, "-m", "fluxline", "generate", "--from", "fox.png", "-o", "two.png"
    )
    said = said_by(again)
    assert again.returncode == 0, said
    assert "note: as fox.png was, it is drawn by 2 ranks: " in said
    two = decode((tmp_path / "two.png").read_bytes()).astype(int)
    assert abs(decode(fox) - two).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "said_so"),
    [
        (("--parallel", "ulysses=2,cfg=2"), "is for 4 ranks; 2 were started"),
        (("--model", "no-such-model"), "no-such-model"),
        (("--sampler", "none"), "sampler"),
    ],
)
def test_what_is_wrong_is_said_once_and_ends_all(wrong, said_so, start, tmp_path):
    process = start(
        *TORCHRUN, "--nproc_per_node=2", *GENERATE, "-o", "fox.png", *wrong, OMP_NUM_THREADS="1"
    )
    said = said_by(process)

    assert process.returncode != 0
    told = [line for line in said.splitlines() if line.startswith("fluxline: ")]
    assert len(told) == 1, said
    assert said_so in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_though_nobody_watches(victim, start, tmp_path):
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        start(sys.executable, *GENERATE, *MANY, **meet, **variables(rank, 2, rank, 2))
        for rank in range(2)
    ]
    drawn(tmp_path)
    ranks[victim].kill()
    said = said_by(ranks[1 - victim], timeout_s=FREED_S)

    assert ranks[1 - victim].returncode > 0
    if victim == 1:
        assert said.splitlines()[-1] == "fluxline: rank 1 is gone; all ranks end"


@pytest.mark.slow
@pytest.mark.parametrize("ways", [(), ("--parallel", "ulysses=2")], ids=["alone", "ranks"])
@pytest.mark.parametrize("begun_s", [2.0, None], ids=["opening", "drawing"])
def test_a_ctrl_c_ends_it_at_once_and_quietly(begun_s, ways, start, tmp_path):
    process = start(sys.executable, *GENERATE, *MANY, "--steps", "50", *ways)
    drawn(tmp_path) if begun_s is None else time.sleep(begun_s)
    ranks = ranks_of(process).values()
    process.send_signal(signal.SIGINT)
    said = said_by(process, timeout_s=FREED_S)

    assert process.returncode == 130, said
    assert "terminate" not in said
    assert not psutil.wait_procs(ranks, timeout=FREED_S)[1]


@pytest.mark.slow
def test_a_ctrl_c_of_torchrun_ends_all(start, tmp_path):
    process = start(*TORCHRUN, "--nproc_per_node=2", *GENERATE, *MANY)
    drawn(tmp_path)
    ranks = ranks_of(process).values()
    process.send_signal(signal.SIGINT)
    said = said_by(process, timeout_s=FREED_S)

    assert process.returncode != 0
    assert "fluxline:" not in said
    assert not psutil.wait_procs(ranks, timeout=FREED_S)[1]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_two_nodes_draw_one_picture(backend, start, alone, tmp_path):
    port = free_port()
    meet = ("--nnodes=2", "--nproc_per_node=1", f"--rdzv_backend={backend}")
    if backend == "static":
        meet += ("--master_addr=127.0.0.1", f"--master_port={port}")
    else:
        meet += (f"--rdzv_endpoint=127.0.0.1:{port}", "--local_addr=127.0.0.1")
    nodes = [
        start(*TORCHRUN, *meet, f"--node_rank={node}", *GENERATE, "-o", "fox.png")
        for node in range(2)
    ]
    said = [said_by(node) for node in nodes]

    assert [node.returncode for node in nodes] == [0, 0], said
    assert is_like(tmp_path, alone)
    assert "".join(said).count("fox.png  seed 7") == 1
