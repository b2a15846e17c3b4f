"""A server whose ranks torchrun has started."""

import base64
import json
import re
import signal
import urllib.request

import psutil
import pytest

from fluxline.cli.nodes import on_ranks
from fluxline.errors import ConfigError
from fluxline.images import decode
from fluxline.settings import Settings
from fluxline.worker.place import Place
from tests.cli.test_ranks import BUSY_S, FREED_S, TORCHRUN, alone, free_port, start

__all__ = ["alone", "start"]
pytestmark = pytest.mark.timeout(400)  # processes that start and open models, several a test
FIRST_OF_TWO = Place(rank=0, size=2, local_rank=0, local_size=2)
TWO = {"a": {"model": "mini"}, "b": {"model": "mini"}}


def drawn_on_two(**options):
    settings, _ = on_ranks(Settings(**options), FIRST_OF_TWO)
    (profile,) = settings.served()
    return profile.parallel


def test_ranks_that_are_told_nothing_divide_the_tokens():
    assert drawn_on_two() == "ulysses=2"


def test_ranks_take_the_cards_that_are_named_for_them():
    assert drawn_on_two(devices=(2, 3)) == "ulysses=2"


def test_a_profile_says_how_its_ranks_draw():
    assert drawn_on_two(profile="b", profiles=TWO | {"b": {"parallel": "cfg=2"}}) == "cfg=2"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"parallel": "ring=4"}, "'ring=4' is for 4 ranks; 2 were started"),
        ({"profiles": TWO}, "one replica of one profile"),
        ({"replicas": 2}, "one replica of one profile"),
        ({"parallel": "data=2"}, "one replica of one profile"),
        ({"load": "lazy"}, "one replica of one profile"),
        ({"memory": "stream"}, "memory stream is of one rank alone"),
        ({"memory": "stream", "parallel": "auto", "device": "cpu"}, "memory stream is of one rank"),
        ({"devices": (0, 2)}, "devices must be 2 cards in a row"),
        ({"devices": (0, 1, 2, 3)}, "devices names 4 cards; of 2 ranks that were started each"),
    ],
)
def test_ranks_that_cannot_be_a_servers_are_refused(options, why):
    with pytest.raises(ConfigError, match=re.escape(why)):
        on_ranks(Settings(**options), FIRST_OF_TWO)


def asked(port, path, **body):
    """What the server answers, in JSON."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=BUSY_S) as answer:
        return json.load(answer)


def ready(node):
    for line in node.stdout:
        if line.startswith("ready:"):
            return
    raise AssertionError("the server has ended")


def rank_of(node):
    """The process that draws there."""
    family = psutil.Process(node.pid).children(recursive=True)
    (rank,) = [one for one in family if "fluxline.worker.rank" in one.cmdline()]
    return rank


@pytest.mark.slow
def test_a_rank_on_another_node_draws_for_a_server_and_comes_back_when_it_is_killed(
    start, alone, tmp_path
):
    port, meet = free_port(), f"--master_port={free_port()}"
    nodes = [
        start(
            *(*TORCHRUN, "--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1"),
            *("--master_addr=127.0.0.1", meet, "-m", "fluxline", "serve", "--device", "cpu"),
            *("--port", port, "--data", tmp_path),
        )
        for node in range(2)
    ]
    ready(nodes[0])
    rank_of(nodes[1]).kill()
    answer = asked(port, "/v1/images/generations", prompt="a red fox", seed=7)
    for node in nodes:
        node.send_signal(signal.SIGINT)

    picture = decode(base64.b64decode(answer["data"][0]["b64_json"]))
    assert abs(picture.astype(int) - alone).max() <= 1
    for node in nodes:
        node.communicate(timeout=FREED_S)
