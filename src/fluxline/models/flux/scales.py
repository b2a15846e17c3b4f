"""By how much PEFT multiplies what an adapter adds: what its file and its metadata say of that."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxline.errors import LoadError
from fluxline.loras import PEFT_KEY

LARGEST_ALPHA = 1e9
PATTERN = re.compile(r"(?!.*[*+?].*[*+?].*[*+?])[\w.^$*+?\\|-]+", re.ASCII)
"""Which expressions of PEFT's configuration are followed: names, and what takes no time to try."""


@dataclass(frozen=True, slots=True)
class Scales:
    """By how much PEFT multiplies what an adapter adds: alpha / rank, unless its file says else."""

    said: Mapping[str, Any]  # PEFT's configuration, or nothing

    @classmethod
    def of(cls, about: Mapping[str, str]) -> "Scales":
        """Read a file's metadata. Raises LoadError."""
        try:
            said = json.loads(about.get(PEFT_KEY) or "{}")
        except (ValueError, RecursionError) as exc:
            raise LoadError("its metadata cannot be read") from exc
        if not isinstance(said, dict):
            raise LoadError("its metadata cannot be read: it is no object")
        if any(key.endswith("use_dora") and value for key, value in said.items()):
            raise LoadError("its metadata says that it is a DoRA, which is not read")
        for key, value in said.items():
            if key.rpartition(".")[2] == "lora_alpha" and value is not None:
                _check_alpha(key, value)
            if key.rpartition(".")[2] == "alpha_pattern" and value:
                _check_patterns(key, value)
        return cls(said)

    def of_pair(self, name: str, rank: int, alpha: float | None) -> float:
        """The scale of one layer's pair. alpha: as a tensor beside it says."""
        if alpha is not None:
            return alpha / rank
        network, _, path = name.partition(".")
        found = self._of(network, path)
        if found is None and (found := self._of("", name)) is None:
            return 1.0
        return found / (math.sqrt(rank) if self._is_rs(network) else rank)

    def of_product(self, name: str, rank: int | None, alpha: float | None) -> float:
        """The scale of one layer's Kronecker product. Raises LoadError.

        rank: None where no factor is of low rank, and an alpha beside it means nothing. PEFT says
        one alpha and one rank of all layers.
        """
        if alpha is not None:
            return alpha / rank if rank else 1.0
        network = name.partition(".")[0]
        for prefix in (f"{network}.", ""):
            patterns = [f"{prefix}{what}_pattern" for what in ("rank", "alpha")]
            if said := [key for key in patterns if self.said.get(key)]:
                raise LoadError(f"{said[0]} in its metadata is not read for LoKr")
            if (whole := self.said.get(f"{prefix}alpha")) is not None:
                ranks = self.said.get(f"{prefix}r")
                _check_alpha(f"{prefix}alpha", whole)
                if type(ranks) is not int or ranks < 1:
                    raise LoadError(f"{prefix}r in its metadata must be a rank; got {ranks!r}")
                return float(whole) / ranks
        return 1.0

    def _of(self, network: str, path: str) -> float | None:
        prefix = f"{network}." if network else ""
        patterns: Mapping[str, float] = self.said.get(f"{prefix}alpha_pattern") or {}
        for pattern, alpha in patterns.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", path):
                return float(alpha)
        whole = self.said.get(f"{prefix}lora_alpha")
        return None if whole is None else float(whole)

    def _is_rs(self, network: str) -> bool:
        return bool(self.said.get(f"{network}.use_rslora") or self.said.get("use_rslora"))


def _check_alpha(key: str, alpha: object) -> None:
    if (
        isinstance(alpha, bool)
        or not isinstance(alpha, int | float)
        or not abs(alpha) <= LARGEST_ALPHA  # nor is NaN
    ):
        raise LoadError(f"{key} in its metadata must be a number; got {alpha!r}")


def _check_patterns(key: str, patterns: object) -> None:
    if not isinstance(patterns, dict):
        raise LoadError(f"{key} in its metadata must be an object; got {patterns!r}")
    for pattern, alpha in patterns.items():
        if not PATTERN.fullmatch(pattern) or not _is_expression(pattern):
            raise LoadError(f"{key} in its metadata has an expression that is not read: {pattern}")
        _check_alpha(key, alpha)


def _is_expression(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
