"""Low-rank adapters beside linear layers: never merged, and any mixture of them in one forward.

    y = base(x) + ((x A^T) * s) B^T

A and B hold all adapters of a forward side by side, and s says for each row how strongly each of
them acts on it, 0 where it does not. So rows with none, one, another or several adapters take two
thin products together, whatever the mixture, and the base stays as it is: quantized, compiled.
Kronecker products (LoKr) come one after another, each for the rows on which it acts.
Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".

Shapes: R rows, r rank of an adapter, K the ranks of all adapters of a forward together.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxline.ops.adapter import Kronecker, Learned, bytes_of

LIMIT_BYTES = 2 * 2**30  # of adapters laid out on the device beside those that act


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """What was learned beside some layers. Never written; its own scale is folded into B.

    parts: by the name of the layer, which begins with that of its network; on the CPU, so that who
    waits takes nothing of the device. stages: of a request in which any of those layers acts.
    """

    digest: str
    parts: Mapping[str, Sequence[Learned]]
    stages: frozenset[str] = frozenset()

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return sum(bytes_of(part) for parts in self.parts.values() for part in parts)


Mix = tuple[tuple[Adapter, float], ...]
"""The adapters of one row, and how strongly each acts."""


class AdapterBank:
    """Which adapters act on which rows of the forward that runs now. Thread: the engine's.

    networks: by the names that layers' names begin with. A layer gets a side branch when the first
    adapter comes that has something for it; the others are never touched. limit_bytes: of what is
    laid out on the device for forwards to come; what the forward needs that runs now is there
    whatever it takes.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], *, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self._networks = networks
        self._limit = limit_bytes
        self._adapted: dict[str, Adapted] = {}
        self._laid: dict[tuple[Adapter, ...], Laid] = {}  # those used last at the end
        self._last: Active | None = None
        self.active: Active | None = None

    @property
    def bytes(self) -> int:
        """Memory of the device that adapters take."""
        return sum(laid.bytes for laid in self._laid.values())

    @contextmanager
    def rows(self, mixes: Sequence[Mix]) -> Iterator[None]:
        """Let row i of every forward in here be drawn with mixes[i]; of one mix, every row."""
        if not any(mixes):
            yield
            return
        if self._last is None or self._last.mixes != tuple(mixes):
            self._last = self._active(mixes)
        self.active = self._last
        try:
            yield
        finally:
            self.active = None
            self._bound()

    def keep(self, worn: Collection[Adapter]) -> None:
        """Let go of what is laid out with any other adapter than these."""
        for adapters in [known for known in self._laid if not set(known) <= set(worn)]:
            self._forget(adapters)

    def forget(self) -> bool:
        """Let go of all that is laid out; who acts again is laid out anew. False: nothing was."""
        was_there = self.bytes > 0
        self.keep(())
        return was_there

    def detach(self) -> None:
        """Leave the networks as they were found."""
        for name, adapted in self._adapted.items():
            self._put(name, adapted.base)
        self._adapted.clear()
        self.forget()

    def _active(self, mixes: Sequence[Mix]) -> "Active":
        found = {adapter for mix in mixes for adapter, _ in mix}
        # in an order that does not depend on the rows'
        adapters = tuple(sorted(found, key=lambda adapter: adapter.digest))
        laid = self._laid.pop(adapters, None) or Laid(adapters)
        self._laid[adapters] = laid
        self._attach(adapters)
        return Active.of(mixes, laid)

    def _bound(self) -> None:
        while len(self._laid) > 1 and self.bytes > self._limit:
            self._forget(next(iter(self._laid)))

    def _forget(self, adapters: tuple[Adapter, ...]) -> None:
        laid = self._laid.pop(adapters)
        if self._last is not None and self._last.laid is laid:
            self._last = None

    def _attach(self, adapters: Sequence[Adapter]) -> None:
        for name in {name for adapter in adapters for name in adapter.parts} - set(self._adapted):
            self._adapted[name] = Adapted(self._get(name), name, self)
            self._put(name, self._adapted[name])

    def _get(self, name: str) -> nn.Module:
        network, _, path = name.partition(".")
        return self._networks[network].get_submodule(path)

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        network, _, path = parent.partition(".")
        setattr(self._networks[network].get_submodule(path), child, module)


@dataclass(frozen=True, slots=True)
class _Joined:
    """What the adapters of a forward have for one layer, side by side."""

    ranks: tuple[int, ...]  # of each, 0 for one that has nothing here
    down: Tensor  # A (K, in)
    up: Tensor  # B^T (K, out)
    products: tuple[tuple[int, Kronecker], ...]  # and the number of the adapter that each is of

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        products = sum(bytes_of(product) for _, product in self.products)
        return self.down.nbytes + self.up.nbytes + products


@dataclass(slots=True, eq=False)
class Laid:
    """Adapters side by side on the device, for the layers that were run with them so far."""

    adapters: tuple[Adapter, ...]
    bytes: int = 0
    _layers: dict[str, _Joined] = field(default_factory=dict)

    def of_layer(self, layer: "Adapted", x: Tensor) -> _Joined:
        """What they have for a layer, where x is; laid out the first time."""
        if layer.name not in self._layers:
            joined = self._layers[layer.name] = self._join(layer, x)
            self.bytes += joined.bytes
        return self._layers[layer.name]

    def _join(self, layer: "Adapted", x: Tensor) -> _Joined:
        learned = [adapter.parts.get(layer.name, ()) for adapter in self.adapters]
        thin = [[part for part in own if not isinstance(part, Kronecker)] for own in learned]
        products = tuple(
            (number, part.each(lambda tensor: tensor.to(x)))
            for number, own in enumerate(learned)
            for part in own
            if isinstance(part, Kronecker)
        )
        ranks = tuple(sum(len(down) for _, down, _ in own) for own in thin)
        down = x.new_zeros(sum(ranks), layer.in_features)
        up = x.new_zeros(sum(ranks), layer.out_features)
        k = 0
        for row, a, b in (part for own in thin for part in own):
            down[k : k + len(a)] = a
            up[k : k + len(a), row : row + len(b)] = b.T
            k += len(a)
        return _Joined(ranks, down, up, products)


@dataclass(frozen=True, slots=True, eq=False)
class Active:
    """The adapters of one forward. strengths: (R, adapters), of each on each row."""

    mixes: tuple[Mix, ...]
    laid: Laid
    strengths: Tensor
    _spread: dict[tuple[tuple[int, ...], torch.device, torch.dtype], Tensor] = field(
        default_factory=dict
    )
    _worn: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=dict
    )

    @classmethod
    def of(cls, mixes: Sequence[Mix], laid: Laid) -> "Active":
        """How strongly each of the adapters acts on each row."""
        strengths = [
            [
                sum(strength for worn, strength in mix if worn is adapter)
                for adapter in laid.adapters
            ]
            for mix in mixes
        ]
        return cls(tuple(mixes), laid, torch.tensor(strengths, dtype=torch.float32))

    def scale(self, ranks: tuple[int, ...], like: Tensor) -> Tensor:
        """Strengths (R, K), each adapter's as often as it has ranks; the same for many layers."""
        key = (ranks, like.device, like.dtype)
        if key not in self._spread:
            spread = self.strengths.repeat_interleave(torch.tensor(ranks), dim=1)
            self._spread[key] = spread.to(like.device, like.dtype)
        return self._spread[key]

    def worn(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rows (r) on which an adapter acts, and how strongly on each; the same for all layers.

        Of one mix, which every row wears, its row is 0.
        """
        key = (number, like.device, like.dtype)
        if key not in self._worn:
            (rows,) = self.strengths[:, number].nonzero(as_tuple=True)
            strengths = self.strengths[rows, number]
            self._worn[key] = rows.to(like.device), strengths.to(like.device, like.dtype)
        return self._worn[key]

    def add(self, number: int, product: Kronecker, x: Tensor, y: Tensor) -> None:
        """Add what a product of an adapter makes of x (R, ..., in) to y (R, ..., out)."""
        wearers, strengths = self.worn(number, x)
        if not len(wearers):
            return
        strengths = strengths.view(-1, *(1,) * (x.dim() - 1))
        is_all = len(wearers) == len(self.strengths)  # or all by one mix
        for row, added in product.answer(x if is_all else x[wearers]):
            answer = y.narrow(-1, row, added.shape[-1])
            if is_all:
                answer += strengths * added
            else:
                answer.index_add_(0, wearers, strengths * added)


class Adapted(nn.Module):
    """A layer with a side branch. Thread: the engine's.

    base: anything with `in_features`, `out_features` and a forward, plain or quantized.
    """

    def __init__(self, base: nn.Module, name: str, bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self._bank = bank

    @property
    def in_features(self) -> int:
        """Width of what it reads."""
        return int(self.base.in_features)  # type: ignore[arg-type]  # nn.Module's attributes are untyped

    @property
    def out_features(self) -> int:
        """Width of its answer."""
        return int(self.base.out_features)  # type: ignore[arg-type]  # as above

    @property
    def weight(self) -> Tensor:
        """The base's, which T5 asks for its dtype."""
        return self.base.weight  # type: ignore[return-value]  # as above

    def forward(self, x: Tensor) -> Tensor:
        """(R, ..., in) to (R, ..., out)."""
        y: Tensor = self.base(x)
        active = self._bank.active
        if active is None:
            return y
        joined = active.laid.of_layer(self, x)
        for number, product in joined.products:
            active.add(number, product, x, y)
        if not len(joined.down):
            return y
        scale = active.scale(joined.ranks, x)  # (R, K)
        inner = F.linear(x, joined.down)  # (R, ..., K)
        inner *= scale.view(len(scale), *(1,) * (x.dim() - 2), -1)
        added = y.flatten(0, -2).addmm_(inner.flatten(0, -2), joined.up)
        return added.view(y.shape)
