"""Machines as people write them, and how long their links take."""

import math

import pytest

from fluxline.errors import ConfigError
from fluxline.parallel.machine import GIB, NVLINK, PCIE, machine_of


@pytest.mark.parametrize(
    ("text", "cards", "node"),
    [
        ("1x24GB-pcie", 1, 1),
        ("4x24GB-pcie", 4, 4),
        ("8x80gb-NVLink", 8, 8),
        ("16x80GB-nvlink+2nodes", 16, 8),
        ("2x80GB-nvlink+2nodes", 2, 1),
        ("16x80GB-nvlink+1node", 16, 16),
    ],
)
def test_cards_memory_and_nodes_are_read(text, cards, node):
    machine = machine_of(text)
    assert machine.cards == cards
    assert machine.memory_bytes == int(text.split("x")[1][:2]) * GIB
    assert machine.links[-2].cards == node
    assert [link.cards for link in machine.links] == sorted(link.cards for link in machine.links)


def test_the_speed_of_cards_may_be_said():
    assert machine_of("4x24GB-pcie@165TFLOPS").flops == 165e12
    assert machine_of("4x24GB-pcie").flops == PCIE.flops
    assert machine_of("4x80GB-nvlink").flops == NVLINK.flops


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4x24", "a machine is written as 4x24GB-pcie or 16x80GB-nvlink+2nodes; got '4x24'"),
        ("4x24GB-usb", "cards are joined by pcie or nvlink; got 'usb'"),
        ("0x24GB-pcie", "a machine has 1 to 256 cards; got 0"),
        ("257x24GB-pcie", "a machine has 1 to 256 cards; got 257"),
        ("4x0GB-pcie", "a card has some memory; got 0GB"),
        ("9x24GB-pcie+2nodes", "9 cards do not lie evenly on 2 nodes"),
        ("4x24GB-pcie+0nodes", "4 cards do not lie evenly on 0 nodes"),
        ("4x24GB-pcie@0TFLOPS", "a card reaches some TFLOPS; got 0"),
    ],
)
def test_what_is_no_machine_is_refused_in_words(text, said):
    with pytest.raises(ConfigError, match="^" + said.replace("+", r"\+")):
        machine_of(text)


def test_cards_of_a_small_node_do_not_cross_sockets():
    small, large = machine_of("4x24GB-pcie"), machine_of("8x24GB-pcie")
    assert all(link.shared_bytes_per_s == math.inf for link in small.links[:-1])
    assert small.all_to_all_s(1e9, stride=1, count=4) == large.all_to_all_s(1e9, stride=1, count=4)
    assert large.all_to_all_s(1e9, stride=1, count=8) > 2 * small.all_to_all_s(
        1e9, stride=1, count=4
    )


def test_what_crosses_nodes_takes_as_long_as_their_link():
    machine = machine_of("16x80GB-nvlink+2nodes")
    near, far = machine.links
    within = machine.all_to_all_s(1e9, stride=1, count=8)
    across = machine.all_to_all_s(1e9, stride=1, count=16)
    assert within == pytest.approx(1e9 / near.bytes_per_s + near.latency_s)
    assert across == pytest.approx(1e9 * 8 / 15 / far.bytes_per_s + far.latency_s)


def test_a_ring_crosses_a_shared_link_once_and_neighbours_on_other_nodes_all_do():
    machine = machine_of("16x48GB-pcie+2nodes")
    far = machine.links[-1]
    around = machine.pass_on_s(1e9, stride=1, count=16)
    paired = machine.pass_on_s(1e9, stride=8, count=2)
    assert around == pytest.approx(1e9 / far.shared_bytes_per_s + far.latency_s)
    assert paired == pytest.approx(8e9 / far.shared_bytes_per_s + far.latency_s)
