"""Cards, and what lies between them, as a cost model needs them; and how people write them.

The speeds of `pcie` and `nvlink` cards are what published figures were fitted with: see
docs/parallel.md.
"""

import math
import re
from dataclasses import dataclass, replace

from fluxline.errors import ConfigError

GIB = 2**30
RESERVED_BYTES = GIB  # of a card, for what is not tensors
MOST_CARDS = 256
FORM = re.compile(
    r"(?P<cards>\d{1,3})x(?P<gb>\d{1,4})GB-(?P<kind>[a-z]+)"
    r"(?:\+(?P<nodes>\d{1,3})nodes?)?(?:@(?P<tflops>\d{1,5})TFLOPS)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What joins neighbours: cards, or groups of cards that nearer links have joined.

    cards: that are joined by it and what is nearer. shared_bytes_per_s: what leaves a group, of
    all its cards together.
    """

    cards: int
    bytes_per_s: float  # of one card
    shared_bytes_per_s: float = math.inf
    latency_s: float = 20e-6  # of a message and of having it sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Cards that are all alike, on one node or several. links: the nearest first."""

    name: str
    cards: int
    memory_bytes: float  # of a card
    flops: float  # products reached, a second
    block_s: float  # of every block, however few tokens it has
    links: tuple[Link, ...]
    vae_share: float = 0.17  # of its flops, what a VAE reaches
    hop_share: float = 0.12  # of block_s, what each further block of keys takes in a ring

    @property
    def vae_flops(self) -> float:
        """Reached by convolutions, a second."""
        return self.vae_share * self.flops

    @property
    def hop_s(self) -> float:
        """Of another block of keys in a ring, however small: its attention, and the merge."""
        return self.hop_share * self.block_s

    @property
    def usable_bytes(self) -> float:
        """Of a card, by tensors."""
        return self.memory_bytes - RESERVED_BYTES

    def all_to_all_s(self, size: float, *, stride: int, count: int) -> float:
        """Seconds in which each of `count` ranks sends so many bytes, evenly to all others.

        stride: cards between two of them; all other cards do the same meanwhile.
        """
        took, latency = 0.0, 0.0
        for below, link in self._crossed(stride, count):
            near = max(1, min(count, below // stride))
            crossing = size * (count - near) / (count - 1)
            took = max(took, self._through(link, crossing, min(below, self.cards)))
            latency = link.latency_s
        return took + latency

    def pass_on_s(self, size: float, *, stride: int, count: int) -> float:
        """Seconds in which each of `count` ranks sends so many bytes to the next."""
        took, latency = 0.0, 0.0
        for below, link in self._crossed(stride, count):
            took = max(took, self._through(link, size, min(stride, below)))
            latency = link.latency_s
        return took + latency

    def _crossed(self, stride: int, count: int) -> list[tuple[int, Link]]:
        """Links between such ranks, each with the cards that lie nearer than it joins."""
        below, crossed = 1, []
        for link in self.links:
            if stride * count > below:
                crossed.append((below, link))
            below = link.cards
        return crossed

    @staticmethod
    def _through(link: Link, size: float, senders: int) -> float:
        return max(size / link.bytes_per_s, senders * size / link.shared_bytes_per_s)


PCIE = Machine(
    name="pcie",
    cards=8,
    memory_bytes=48 * GIB,
    flops=130e12,  # these two: an L40, eager
    block_s=1.1e-3,
    links=(
        Link(cards=4, bytes_per_s=25e9),  # of a socket: PCIe 4.0 with 16 lanes, as is usual
        Link(cards=8, bytes_per_s=25e9, shared_bytes_per_s=12e9),  # so that eight gain what is told
        Link(cards=MOST_CARDS, bytes_per_s=1.5e9, shared_bytes_per_s=1.5e9, latency_s=50e-6),
    ),
)
NVLINK = Machine(
    name="nvlink",
    cards=8,
    memory_bytes=80 * GIB,
    flops=620e12,  # these two: an H100, eager
    block_s=1.7e-3,
    links=(
        Link(cards=8, bytes_per_s=100e9),
        Link(cards=MOST_CARDS, bytes_per_s=25e9, latency_s=50e-6),  # 200 Gbit/s a card: assumed
    ),
)
KINDS = {"pcie": PCIE, "nvlink": NVLINK}


def machine_of(text: str) -> Machine:
    """Read "4x24GB-pcie" or "16x80GB-nvlink+2nodes@400TFLOPS". Raises ConfigError."""
    said = FORM.fullmatch(text.strip())
    if said is None:
        message = f"a machine is written as 4x24GB-pcie or 16x80GB-nvlink+2nodes; got {text!r}"
        raise ConfigError(f"{message}; its cards' speed may follow: 4x24GB-pcie@165TFLOPS")
    cards, nodes = int(said["cards"]), int(said["nodes"] or 1)
    kind = KINDS.get(said["kind"].lower())
    if kind is None:
        message = f"cards are joined by {' or '.join(KINDS)}; got {said['kind']!r}"
        raise ConfigError(f"{message} in {text!r}")
    if not 1 <= cards <= MOST_CARDS:
        raise ConfigError(f"a machine has 1 to {MOST_CARDS} cards; got {cards} in {text!r}")
    if not int(said["gb"]):
        raise ConfigError(f"a card has some memory; got {said['gb']}GB in {text!r}")
    if nodes < 1 or cards % nodes:
        raise ConfigError(f"{cards} cards do not lie evenly on {nodes} nodes, in {text!r}")
    made = replace(kind, name=text.strip(), cards=cards, memory_bytes=int(said["gb"]) * GIB)
    if said["tflops"]:
        made = replace(made, flops=_flops(int(said["tflops"]), text))
    return replace(made, links=_on_nodes(made.links, cards // nodes))


def _flops(tflops: int, text: str) -> float:
    if not tflops:
        raise ConfigError(f"a card reaches some TFLOPS; got 0 in {text!r}")
    return tflops * 1e12


def _on_nodes(links: tuple[Link, ...], cards: int) -> tuple[Link, ...]:
    """Links where a node has so many cards; the last of them joins nodes."""
    *inside, network = links
    below = 1
    kept: list[Link] = []
    for link in inside:
        if below < cards or not kept:
            kept.append(link)
        below = link.cards
    return (*kept[:-1], replace(kept[-1], cards=cards), network)
