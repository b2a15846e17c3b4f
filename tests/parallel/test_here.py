"""A machine is written down from what torch says of its cards."""

from dataclasses import dataclass

import pytest

from fluxline.parallel.here import machine_here
from fluxline.parallel.machine import GIB, machine_of


@dataclass(frozen=True)
class Card:
    name: str
    total_memory: int


class Cuda:
    """What torch.cuda says; strangers: cards that no other one reaches."""

    def __init__(self, *names, gb=80.0, strangers=()):
        self._cards = [Card(name, int(gb * GIB)) for name in names]
        self._strangers = strangers

    def device_count(self):
        return len(self._cards)

    def get_device_properties(self, device):
        return self._cards[device]

    def can_device_access_peer(self, device, peer_device):
        return not {device, peer_device} & set(self._strangers)


def here(cuda):
    return machine_here(cuda, range(cuda.device_count()))


def test_without_cards_there_is_no_machine():
    assert here(Cuda()) == ""


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("NVIDIA H100 80GB HBM3", "nvlink"),
        ("NVIDIA H100 PCIe", "pcie"),
        ("NVIDIA H200", "nvlink"),
        ("NVIDIA H200 NVL", "pcie"),
        ("NVIDIA A100-SXM4-80GB", "nvlink@190TFLOPS"),
        ("NVIDIA A100-PCIE-40GB", "pcie@190TFLOPS"),
        ("NVIDIA L20", "pcie@92TFLOPS"),
        ("NVIDIA L40", "pcie"),
        ("NVIDIA GeForce RTX 4090", "pcie"),
    ],
)
def test_a_cards_name_tells_its_link_and_speed(name, link):
    machine = here(Cuda(name, name))
    assert machine == f"2x80GB-{link}"
    assert machine_of(machine).cards == 2


def test_memory_is_never_said_to_be_more_than_it_is():
    assert here(Cuda("NVIDIA L40", gb=44.9)) == "1x44GB-pcie"


def test_cards_that_do_not_reach_each_other_are_not_on_fast_links():
    assert here(Cuda("NVIDIA H200", "NVIDIA H200", strangers=[1])) == "2x80GB-pcie"


def test_the_slowest_link_of_different_cards_counts():
    assert here(Cuda("NVIDIA H200", "NVIDIA L40")) == "2x80GB-pcie"


def test_only_the_cards_that_are_meant_and_there_count():
    cuda = Cuda("NVIDIA L40", "NVIDIA H200", "NVIDIA H200")
    assert machine_here(cuda, [1, 2, 3]) == "2x80GB-nvlink"
