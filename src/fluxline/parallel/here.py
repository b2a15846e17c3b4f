"""The machine at hand as people write it, from what torch says of its cards.

Torch tells names and memory, and whether cards reach each other at all; what lies between them is
told by their names, for links are soldered to what has them. `python -m fluxline.parallel.here`
says it of this machine, in a process that ends and leaves no card held.
"""

import re
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from fluxline.parallel.machine import GIB

NVLINKED = re.compile(r"SXM|HBM3|\b(?:GH200|H200|H20|H800|B200|B300|GB200|GB300)\b", re.ASCII)
BY_THEMSELVES = re.compile(r"PCIe|NVL\b|MIG", re.IGNORECASE)  # or in pairs
SPEEDS = (  # products reached, tera a second, where it is neither an L40's nor an H100's
    (re.compile(r"\bA100|\bA800"), 190),
    (re.compile(r"\bL20\b"), 92),
)


class Cuda(Protocol):
    """What is asked of `torch.cuda`."""

    def device_count(self) -> int:
        """Cards."""

    def get_device_properties(self, device: int) -> Any:
        """With `name` and `total_memory`, in bytes."""

    def can_device_access_peer(self, device: int, peer_device: int) -> bool:
        """Whether one card reads another's memory."""


def machine_here(cuda: Cuda, cards: Sequence[int]) -> str:
    """As `machine_of` reads it; empty: of these cards none is here.

    Of cards that are not alike the smallest counts, and the slowest link.
    """
    numbers = [number for number in cards if number < cuda.device_count()]
    if not numbers:
        return ""
    first, *others = numbers
    known = [cuda.get_device_properties(number) for number in numbers]
    least_gb = max(1, min(card.total_memory for card in known) // GIB)
    reach = all(cuda.can_device_access_peer(first, other) for other in others)
    link = "nvlink" if reach and all(_is_linked(card.name) for card in known) else "pcie"
    return f"{len(known)}x{least_gb}GB-{link}{_speed(known[0].name)}"


def _is_linked(name: str) -> bool:
    return NVLINKED.search(name) is not None and BY_THEMSELVES.search(name) is None


def _speed(name: str) -> str:
    return next((f"@{tera}TFLOPS" for card, tera in SPEEDS if card.search(name)), "")


def main(cards: Sequence[int]) -> None:
    """Say it of these cards, or of all."""
    import torch

    print(machine_here(torch.cuda, cards or range(torch.cuda.device_count())))


if __name__ == "__main__":
    main([int(card) for card in sys.argv[1:]])
