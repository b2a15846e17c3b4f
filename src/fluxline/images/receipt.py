"""The receipt of a picture: what its bytes depend on beside what was asked.

Equal recipes with equal receipts make equal files, byte for byte, on one machine.
"""

from dataclasses import dataclass

TOLD = ("weights", "sigmas", "dtype", "device", "torch")
"""What cannot be had again by asking; threads can, and `beside` is chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a picture was made with. Written by the engine, read by whoever makes it again."""

    weights: str  # fingerprint of the model's
    sigmas: tuple[float, ...]  # that the sampler visited, the last of them 0
    dtype: str
    device: str  # its kind, and what of it rounding depends on: "cpu AVX512"
    torch: str  # version
    threads: int  # of the CPU
    beside: int = 0  # most pictures it shared a batch with: each may change its last bits

    def differences(self, other: "Receipt") -> list[str]:
        """Name what differs, in words: what was here, and is there."""
        return [
            "its sigmas are others" if name == "sigmas" else f"its {name} was {then}, is {now}"
            for name in TOLD
            if (then := getattr(self, name)) != (now := getattr(other, name))
        ]
