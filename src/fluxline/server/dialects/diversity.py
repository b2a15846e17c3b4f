"""The batch dialect's plan: which sampler, steps, guidance and seed each of N pictures gets.

All combinations are shuffled once; N pictures take N of them evenly spread, or go round when there
are fewer combinations than pictures.
"""

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fluxline.request import SamplerName, random_seed

SeedPolicy = Literal["fixed", "random", "mix"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One picture's own values."""

    sampler: SamplerName
    steps: int
    cfg_scale: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """What may vary. base_seed: makes the plan reproducible; None: every plan is another."""

    samplers: Sequence[SamplerName] = ("euler", "ddim", "dpmpp_2m")
    steps: Sequence[int] = (10, 20, 30)
    cfg_scales: Sequence[float] = (3.5, 5.0, 7.5)
    seeds: SeedPolicy = "mix"
    base_seed: int | None = None

    def plan(self, count: int) -> list[Choice]:
        """Choose for `count` pictures, at least one."""
        every = list(
            itertools.product(
                dict.fromkeys(self.samplers),
                dict.fromkeys(self.steps),
                dict.fromkeys(self.cfg_scales),
            )
        )
        random.Random(self.base_seed).shuffle(every)
        total = len(every)
        chosen = [every[i * total // count if count <= total else i % total] for i in range(count)]
        salt = random_seed() if self.base_seed is None else self.base_seed
        return [
            Choice(sampler, steps, scale, self._seed(salt, i, sampler, steps, scale))
            for i, (sampler, steps, scale) in enumerate(chosen)
        ]

    def _seed(self, salt: int, index: int, sampler: str, steps: int, scale: float) -> int:
        if self.seeds == "fixed":
            return self.base_seed or 0
        if self.seeds == "random":
            return random_seed()
        told = f"{salt} {index} {sampler} {steps} {scale!r}"  # a digest: hash() is salted
        return int.from_bytes(hashlib.sha256(told.encode()).digest()[:4], "big")
