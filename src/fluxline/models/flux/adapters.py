"""LoRA files for FLUX, in every dialect that is about: names and scales, made ours.

An adapter names the layers that it was trained beside as its trainer called them: after diffusers,
after Black Forest Labs, or after x-labs, with dots or with underscores, under one of many
prefixes. All of them are looked up in the tables by which checkpoints are read. Low-rank pairs and
Kronecker products (LoKr) are read; what is neither (DoRA, LoHa, whole differences) is refused by
name, never passed over.
Source of the spellings: diffusers, loaders/lora_conversion_utils.py, which is the tests' oracle.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fluxline.errors import LoadError
from fluxline.models.base import Stage
from fluxline.models.flux.names import Span
from fluxline.models.flux.scales import Scales
from fluxline.ops.adapter import Kronecker, Learned, LowRank

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
    rf"(?P<name>.+?)\.(?:(?:(?P<down>{DOWN})|(?P<up>{UP}))(?:\.default)?\.weight"
    r"|lokr_(?P<factor>w[12](?:_[ab])?)|(?P<alpha>alpha))"
)
FOREIGN = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_t2": "LoKr of a convolution",
    "lora_mid": "LoCon",
    "oft_": "OFT",
    ".diff": "a difference of whole weights",
    ".bias": "a bias",
}


@dataclass(slots=True)
class _Said:
    """One layer's, as its file calls it. halves: down and up, or factors: w1, w2, or w1_a, …"""

    name: str
    alpha: float | None = None
    halves: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_product(self) -> bool:
        """Whether it is a LoKr's."""
        return any(half.startswith("w") for half in self.halves)


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
    ) -> dict[str, list[Learned]]:
        """What a file has for each layer of ours, its scale folded into B, or into the left factor.

        about: the file's metadata. Raises LoadError naming what is not read or does not fit.
        """
        scales = Scales.of(about)
        parts: dict[str, list[Learned]] = {}
        for said in self._said(tensors):
            placed = self._product_placed if said.is_product else self._pair_placed
            for layer, part in placed(said, scales):
                parts.setdefault(layer, []).append(part)
        if not parts:
            raise LoadError("it has nothing for any layer of this model")
        return {layer: _fused(own) for layer, own in parts.items()}

    def _said(self, tensors: Mapping[str, Tensor]) -> list[_Said]:
        found: dict[str, _Said] = {}
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
            one = found.setdefault(_flat(said["name"]), _Said(said["name"]))
            if not tensor.isfinite().all():
                raise LoadError(f"it holds NaN or infinity in {key}")
            half = said["factor"] or ("down" if said["down"] else "up")
            if (one.alpha is not None) if said["alpha"] else (half in one.halves):
                raise LoadError(f"it has {key} twice, in two spellings")
            if said["alpha"]:
                one.alpha = float(tensor)
            else:
                one.halves[half] = tensor
        if unread:
            raise LoadError(_not_read(unread))
        return list(found.values())

    def _pair_placed(self, pair: _Said, scales: Scales) -> Iterator[tuple[str, LowRank]]:
        """Where in our layers a pair acts; of rows that ours has in another order, in pieces."""
        if set(pair.halves) != {"down", "up"}:
            raise LoadError(f"it has only one half of {pair.name}")
        down, up = pair.halves["down"], pair.halves["up"]
        if down.dim() != 2 or up.dim() != 2 or not len(down):
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise LoadError(f"{pair.name} is of two matrices in a LoRA; it has {shapes}")
        if len(down) != up.shape[1]:
            raise LoadError(f"the halves of {pair.name} are of ranks {len(down)} and {up.shape[1]}")
        rows, columns = len(up), down.shape[1]
        spans = self._spans(pair.name, rows, columns)
        if len(down) > max(rows, columns):
            message = f"it is of rank {len(down)} at {pair.name}, a layer of {columns} to {rows}"
            raise LoadError(f"{message}: more than all that the layer could learn")
        scaled = up.float() * scales.of_pair(pair.name, len(down), pair.alpha)
        own = torch.split(scaled, [size for _, size in spans])
        for (span, _), part in zip(spans, own, strict=True):
            yield span.layer, (span.first, down.float(), part)

    def _product_placed(self, said: _Said, scales: Scales) -> Iterator[tuple[str, Kronecker]]:
        """Where in our layers a product acts; of rows that ours has in another order, in pieces."""
        left, right = (_factors(said, number) for number in (1, 2))
        rank = next((len(two[1]) for two in (right, left) if len(two) == 2), None)
        scale = scales.of_product(said.name, rank, said.alpha)
        whole = Kronecker((scale * left[0], *left[1:]), right, places=())
        places: dict[str, list[tuple[tuple[int, int], int]]] = {}
        first = 0
        for span, size in self._spans(said.name, *whole.shape):
            places.setdefault(span.layer, []).append(((first, first + size), span.first))
            first += size
        for layer, own in places.items():
            yield layer, replace(whole, places=tuple(own))

    def _spans(self, name: str, rows: int, columns: int) -> list[tuple[Span, int]]:
        """Which rows of our layers a layer is, and how many. Raises LoadError for another size."""
        spans = self._layers[_flat(name)]
        sizes = [(span.last or self._widths[span.layer][1]) - span.first for span in spans]
        width = self._widths[spans[0].layer][0]
        if (rows, columns) != (sum(sizes), width):
            hint = ""
            if spans[0].layer == "transformer.image_in" and columns > width:
                hint = ", as a control LoRA does, which is not read"
            raise LoadError(
                f"it is made for a layer of {columns} to {rows} at {name}, "
                f"where this model has {width} to {sum(sizes)}{hint}"
            )
        return list(zip(spans, sizes, strict=True))


def _factors(said: _Said, number: int) -> tuple[Tensor, ...]:
    """One side of a product: a matrix, or the two whose product it is. Raises LoadError."""
    names = {half for half in said.halves if half.startswith(f"w{number}")}
    if said.halves.keys() & {"down", "up"} or names not in (
        {f"w{number}"},
        {f"w{number}_a", f"w{number}_b"},
    ):
        raise LoadError(f"it has not all of one LoKr at {said.name}: {', '.join(said.halves)}")
    factors = tuple(said.halves[name].float() for name in sorted(names))
    shapes = [tuple(factor.shape) for factor in factors]
    if any(factor.dim() != 2 or not factor.numel() for factor in factors) or (
        len(factors) == 2 and shapes[0][1] != shapes[1][0]
    ):
        raise LoadError(f"{said.name} is of matrices in a LoKr; it has {shapes}")
    height, width = len(factors[0]), factors[-1].shape[1]
    if len(factors) == 2 and len(factors[1]) > max(height, width):
        message = f"it is of rank {len(factors[1])} at {said.name}, a factor of {height} to {width}"
        raise LoadError(f"{message}: more than all that the factor could learn")
    return factors


def stage_of(layer: str) -> Stage:
    """The stage of a request in which a layer acts: encode, context or evaluate."""
    network, _, path = layer.partition(".")
    if network != "transformer" or path == "text_in":
        return "encode"
    once = ("modulation", "time_in.", "pooled_in.", "guidance_in.")
    return "context" if path.startswith(once) else "evaluate"


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _fused(parts: Sequence[Learned]) -> list[Learned]:
    """Pairs that read through the same A made one, as a fused projection's trainer had it."""
    groups: list[list[LowRank]] = []
    products = [part for part in parts if isinstance(part, Kronecker)]
    pairs = [part for part in parts if not isinstance(part, Kronecker)]
    for part in sorted(pairs, key=lambda part: part[0]):
        for group in groups:
            if torch.equal(group[0][1], part[1]):
                group.append(part)
                break
        else:
            groups.append([part])
    return [*map(_one, groups), *products]


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
