"""LoRA files for FLUX, in every dialect that is about: names and scales, made ours.

An adapter names the layers that it was trained beside as its trainer called them: after diffusers,
after Black Forest Labs, or after x-labs, with dots or with underscores, under one of many
prefixes. All of them are looked up in the tables by which checkpoints are read. What is not
low-rank (DoRA, LoHa, LoKr, whole differences) is refused by name, never passed over.
Source of the spellings: diffusers, loaders/lora_conversion_utils.py, which is the tests' oracle.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fluxline.errors import LoadError
from fluxline.loras import PEFT_KEY
from fluxline.models.base import LowRank, Stage
from fluxline.models.flux.names import Span

PREFIXES = {
    "transformer": (
        "",
        "transformer.",  # diffusers, ai-toolkit
        "diffusion_model.",  # ComfyUI
        "base_model.model.",  # PEFT
        "base_model.model.transformer.",
        "lora_unet_",  # kohya
        "lora_transformer_",  # OneTrainer
        "lycoris_",
    ),
    "text_encoder": (
        "text_encoder.",
        "lora_te_",
        "lora_te1_",
        "text_encoders.clip_l.transformer.",
    ),
    "text_encoder_2": (
        "text_encoder_2.",
        "lora_te2_",  # OneTrainer
        "lora_te3_",  # kohya
        "text_encoders.t5xxl.transformer.",
    ),
}
DOWN = r"lora_A|lora_down|lora\.down|lora_linear_layer\.down|down"
UP = r"lora_B|lora_up|lora\.up|lora_linear_layer\.up|up"
SPELLED = re.compile(
    rf"(?P<name>.+?)\.(?:(?:(?P<down>{DOWN})|(?P<up>{UP}))(?:\.default)?\.weight|(?P<alpha>alpha))"
)
FOREIGN = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon",
    "oft_": "OFT",
    ".diff": "a difference of whole weights",
    ".bias": "a bias",
}
LARGEST_ALPHA = 1e9
PATTERN = re.compile(r"(?!.*[*+?].*[*+?].*[*+?])[\w.^$*+?\\|-]+", re.ASCII)
"""Which expressions of PEFT's configuration are followed: names, and what takes no time to try."""


@dataclass(slots=True)
class _Pair:
    """One layer's, as its file calls it."""

    name: str
    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None


@dataclass(slots=True)
class AdapterReader:
    """Finds layers by the names that adapters have for them.

    linears: the transformer's, by every name, and which rows of ours each is. networks: ours, by
    their names.
    """

    linears: Mapping[str, list[Span]]
    networks: Mapping[str, nn.Module]
    _layers: dict[str, list[Span]] = field(init=False)
    _widths: dict[str, tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._widths = {
            f"{network}.{name}": (int(module.in_features), int(module.out_features))
            for network, whole in self.networks.items()
            for name, module in whole.named_modules()
            if hasattr(module, "in_features") and hasattr(module, "out_features")
        }
        known = {
            _flat(name): [span._replace(layer=f"transformer.{span.layer}") for span in spans]
            for name, spans in self.linears.items()
        }
        self._layers = {
            _flat(prefix) + name: spans
            for prefix in PREFIXES["transformer"]
            for name, spans in known.items()
            if all(span.layer in self._widths for span in spans)
        }
        for network in set(self.networks) - {"transformer"}:
            for full in [name for name in self._widths if name.startswith(f"{network}.")]:
                name = full.removeprefix(f"{network}.")
                for prefix in PREFIXES[network]:
                    for older in ("", "text_model."):  # transformers has dropped CLIP's
                        self._layers[_flat(prefix + older + name)] = [Span(full, 0, None)]

    def read(
        self, tensors: Mapping[str, Tensor], about: Mapping[str, str]
    ) -> dict[str, list[LowRank]]:
        """What a file has for each layer of ours, its scale folded into B.

        about: the file's metadata. Raises LoadError naming what is not read or does not fit.
        """
        scales = _Scales.of(about)
        parts: dict[str, list[LowRank]] = {}
        for pair in self._pairs(tensors):
            for layer, part in self._placed(pair, scales):
                parts.setdefault(layer, []).append(part)
        if not parts:
            raise LoadError("it has nothing for any layer of this model")
        return {layer: _fused(own) for layer, own in parts.items()}

    def _pairs(self, tensors: Mapping[str, Tensor]) -> list[_Pair]:
        pairs: dict[str, _Pair] = {}
        unread = []
        for key, tensor in tensors.items():
            said = SPELLED.fullmatch(key)
            if (
                said is None
                or _flat(said["name"]) not in self._layers
                or (said["alpha"] and tensor.numel() != 1)
            ):
                if tensor.count_nonzero():  # nothing is lost with zeros
                    unread.append(key)
                continue
            pair = pairs.setdefault(_flat(said["name"]), _Pair(said["name"]))
            if not tensor.isfinite().all():
                raise LoadError(f"it holds NaN or infinity in {key}")
            half = "alpha" if said["alpha"] else "down" if said["down"] else "up"
            if getattr(pair, half) is not None:
                raise LoadError(f"it has {key} twice, in two spellings")
            setattr(pair, half, float(tensor) if said["alpha"] else tensor)
        if unread:
            raise LoadError(_not_read(unread))
        return list(pairs.values())

    def _placed(self, pair: _Pair, scales: "_Scales") -> Iterator[tuple[str, LowRank]]:
        """Where in our layers a pair acts; of rows that ours has in another order, in pieces."""
        down, up = pair.down, pair.up
        if down is None or up is None:
            raise LoadError(f"it has only one half of {pair.name}")
        if down.dim() != 2 or up.dim() != 2 or not len(down):
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise LoadError(f"{pair.name} is of two matrices in a LoRA; it has {shapes}")
        spans = self._layers[_flat(pair.name)]
        sizes = [(span.last or self._widths[span.layer][1]) - span.first for span in spans]
        fits = [(len(down), self._widths[spans[0].layer][0]), (sum(sizes), len(down))]
        if [tuple(down.shape), tuple(up.shape)] != fits:
            got, want = (up.shape[0], down.shape[-1]), (sum(sizes), fits[0][1])
            hint = ""
            if spans[0].layer == "transformer.image_in" and down.shape[-1] > want[1]:
                hint = ", as a control LoRA does, which is not read"
            raise LoadError(
                f"it is made for a layer of {got[1]} to {got[0]} at {pair.name}, "
                f"where this model has {want[1]} to {want[0]}{hint}"
            )
        if len(down) > max(fits[0][1], fits[1][0]):
            message = f"it is of rank {len(down)} at {pair.name}, a layer of {fits[0][1]} to"
            raise LoadError(f"{message} {fits[1][0]}: more than all that the layer could learn")
        scaled = up.float() * scales.of_layer(pair.name, len(down), pair.alpha)
        for span, rows in zip(spans, torch.split(scaled, sizes), strict=True):
            yield span.layer, (span.first, down.float(), rows)


@dataclass(frozen=True, slots=True)
class _Scales:
    """By how much PEFT multiplies what an adapter adds: alpha / rank, unless its file says else."""

    said: Mapping[str, Any]  # PEFT's configuration, or nothing

    @classmethod
    def of(cls, about: Mapping[str, str]) -> "_Scales":
        """Read a file's metadata. Raises LoadError."""
        try:
            said = json.loads(about.get(PEFT_KEY) or "{}")
        except (ValueError, RecursionError) as exc:
            raise LoadError("its metadata cannot be read") from exc
        if not isinstance(said, dict):
            raise LoadError("its metadata cannot be read: it is no object")
        if any(key.endswith("use_dora") and value for key, value in said.items()):
            raise LoadError(_not_read(["dora_scale"]))
        for key, value in said.items():
            if key.rpartition(".")[2] == "lora_alpha" and value is not None:
                _check_alpha(key, value)
            if key.rpartition(".")[2] == "alpha_pattern" and value:
                _check_patterns(key, value)
        return cls(said)

    def of_layer(self, name: str, rank: int, alpha: float | None) -> float:
        """The scale of one layer. alpha: as a tensor beside it says."""
        if alpha is not None:
            return alpha / rank
        network, _, path = name.partition(".")
        found = self._of(network, path)
        if found is None and (found := self._of("", name)) is None:
            return 1.0
        return found / (math.sqrt(rank) if self._is_rs(network) else rank)

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
    if not isinstance(alpha, int | float) or not abs(alpha) <= LARGEST_ALPHA:  # nor is NaN
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


def stage_of(layer: str) -> Stage:
    """The stage of a request in which a layer acts: encode, context or evaluate."""
    network, _, path = layer.partition(".")
    if network != "transformer" or path == "text_in":
        return "encode"
    once = ("modulation", "time_in.", "pooled_in.", "guidance_in.")
    return "context" if path.startswith(once) else "evaluate"


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _fused(parts: Sequence[LowRank]) -> list[LowRank]:
    """Parts that read through the same A made one, as a fused projection's trainer had it."""
    groups: list[list[LowRank]] = []
    for part in sorted(parts, key=lambda part: part[0]):
        for group in groups:
            if torch.equal(group[0][1], part[1]):
                group.append(part)
                break
        else:
            groups.append([part])
    return [_one(group) for group in groups]


def _one(group: Sequence[LowRank]) -> LowRank:
    first, down, _ = group[0]
    height = max(row + len(up) for row, _, up in group) - first
    whole = down.new_zeros(height, len(down))
    for row, _, up in group:
        whole[row - first : row - first + len(up)] = up
    return first, down, whole


def _not_read(keys: Sequence[str]) -> str:
    kinds = {kind for mark, kind in FOREIGN.items() if any(mark in key for key in keys)}
    what = f" ({', '.join(sorted(kinds))})" if kinds else ""
    names = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} of its tensors are not read{what}: {names}"
