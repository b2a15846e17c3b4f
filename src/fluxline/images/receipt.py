"""The receipt of a picture: what its bytes depend on beside what was asked.

Equal recipes with equal receipts make equal files, byte for byte, on one machine.
"""

from dataclasses import dataclass

from fluxline.request import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a picture was made with. Written by the engine, read by whoever makes it again."""

    weights: str  # fingerprint of the model's
    sigmas: tuple[float, ...]  # that the sampler visited, the last of them 0
    dtype: str
    device: str  # its kind, and what of it rounding depends on: "cpu AVX512"
    torch: str  # version
    threads: int  # of the CPU
    precision: str = ""  # how the weights were held; empty in receipts older than this field
    backend: Backend = "native"
    beside: int = 0  # most pictures it shared a batch with: each may change its last bits
    loras: tuple[str, ...] = ()  # hashes of those that acted, in the request's order
    parallel: str = ""  # the ranks that drew it together, as `--parallel` says them

    def differences(self, later: "Receipt") -> list[str]:
        """Say what is no longer as it was, like "torch 2.9.0 then, 2.10.0 now"."""
        said = [
            f"{name} {then} then, {now} now"
            for name in ("weights", "precision", "dtype", "device", "torch")
            if (then := getattr(self, name)) and then != (now := getattr(later, name))
        ]
        if self.parallel != later.parallel:
            then, now = (parallel or "one rank" for parallel in (self.parallel, later.parallel))
            said.append(f"drawn by {then} then, {now} now")
        if self.loras != later.loras:
            then, now = (", ".join(loras) or "none" for loras in (self.loras, later.loras))
            said.append(f"LoRA {then} then, {now} now")
        return said
