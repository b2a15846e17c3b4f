"""Cards that are not there: tensors of the CPU that know which card they would lie on.

As on real ones, an operation on tensors of two cards, or of a card and the CPU, is an error, and so
is to ask a card for its numbers as an array. What a storage would lie on is written on it, so views
and parameters know too. Numbers are the CPU's: kernels, speed and what only CUDA does are not here.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.card_products import PRODUCTS
from tests.streams import Streams

CPU = torch.device("cpu")
PASSES = (Tensor.data.__set__, torch._has_compatible_shallow_copy_type)
READS_DEVICE = Tensor.device.__get__
READS_IS_CUDA = Tensor.is_cuda.__get__
READS_IS_PINNED = Tensor.is_pinned
MOVES = {Tensor.to, Tensor.cpu}
FILLS = {Tensor.copy_, Tensor.__setitem__}
INDEXES = {Tensor.__getitem__}
COPIED_IN = {torch.tensor, torch.as_tensor}
ARRAYS = {Tensor.numpy, Tensor.__array__}
ASKS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.nonzero,
    torch.nonzero,
    Tensor.masked_select,
    torch.masked_select,
    Tensor.unique,
    torch.unique,
    Tensor.equal,
    torch.equal,
    torch.allclose,
}
"""What wants to know what numbers are, or how many."""
SOURCES = str(Path(__file__).parents[1] / "src")


class TwoCards(RuntimeError):
    """What a real machine would have raised."""


class Cards(TorchFunctionMode):
    """Inside, `cuda:0`, `cuda:1` and so on can be computed on, slowly, by this thread.

    carried: how often a tensor went from one to another. waits: where the host would have waited
    for a card: the function, and where in the package it was called. streams: whose order is kept.
    """

    def __init__(self, streams: Streams | None = None) -> None:
        super().__init__()
        self.streams = streams or Streams()
        self.carried = 0
        self.waits: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if any(func == one for one in PASSES):
            return func(*args)
        if func == READS_DEVICE:
            return card_of(args[0])
        if func == READS_IS_CUDA:
            return card_of(args[0]) != CPU
        if func == READS_IS_PINNED:
            return is_pinned(args[0])
        if func == Tensor.pin_memory:
            return pinned(args[0])
        if func in MOVES:
            return self._moved(func, args, kwargs)
        made = kwargs.get("device") is not None
        where = numbered(kwargs.pop("device")) if made else self._common(func, args, kwargs)
        if made:
            kwargs["device"] = CPU
        self._note(func, args, where, made=made)
        run = PRODUCTS.get(func, func) if where.type == "cuda" else func
        result = _put(run(*args, **kwargs), where)
        self._order(func, (args, kwargs), args[0] if func == Tensor.__setitem__ else result)
        return result

    def _moved(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor, *rest = args
        source = card_of(tensor)
        if func == Tensor.cpu:
            where = CPU
        elif rest and isinstance(rest[0], torch.dtype):
            where = source
        elif rest and isinstance(rest[0], Tensor):
            where = card_of(rest.pop(0))
        else:
            where = numbered((rest.pop(0) if rest else kwargs.pop("device", None)) or source)
        said = {**dict(zip(("dtype", "non_blocking", "copy"), rest, strict=False)), **kwargs}
        moved = tensor.to(**{name: value for name, value in said.items() if value is not None})
        if where != source:
            self.carried += 1
            moved = moved.clone()
            if CPU in (where, source) and not said.get("non_blocking"):
                self._wait(f"to {where.type}")
        result = _put(moved, where)
        self._order(func, tensor, result)
        return result

    def _order(self, func: Any, given: Any, result: Any) -> None:
        """See that the current stream may read what it reads. A view reads nothing."""
        read = [tensor for tensor in _tensors(given) if card_of(tensor).type == "cuda"]
        known = {id(tensor.untyped_storage()) for tensor in read}
        made = [
            tensor
            for tensor in _tensors(result)
            if id(tensor.untyped_storage()) not in known or tensor is read[0]
        ]
        if made or func in ASKS:
            for tensor in read:
                self.streams.read(tensor)
        for tensor in made:
            if card_of(tensor).type == "cuda":
                self.streams.written(tensor)

    def _common(self, func: Any, args: Any, kwargs: Any) -> torch.device:
        """The one card that all lie on; numbers may lie beside, and indices and sources."""
        tensors = _tensors((args, kwargs))
        beside = tensors[1:] if func in INDEXES | FILLS else []
        if func in INDEXES | FILLS:
            tensors = tensors[:1]
        cards = {card_of(tensor) for tensor in tensors if tensor.dim() or card_of(tensor) != CPU}
        if func in INDEXES:
            cards |= {card_of(index) for index in beside} - {CPU}
        if len(cards) > 1:
            raise TwoCards(f"{func} meets tensors of {sorted(map(str, cards))}")
        return cards.pop() if cards else card_of(tensors[0]) if tensors else CPU

    def _note(self, func: Any, args: Any, where: torch.device, *, made: bool) -> None:
        """Write down that the host would wait."""
        waits = func in FILLS and any(card_of(one) != where for one in _tensors(args))
        if where.type == "cuda":
            if func in ARRAYS:
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            indices = _tensors(args[1:]) if func in INDEXES else []
            waits |= func in ASKS or (made and func in COPIED_IN)
            waits |= func in INDEXES and isinstance(args[1], list)
            waits |= any(one.dtype == torch.bool or card_of(one) == CPU for one in indices)
        if waits:
            self._wait(func.__name__)

    def _wait(self, what: str) -> None:
        frame, where = sys._getframe(), "the test"
        while (frame := frame.f_back) is not None:
            if frame.f_code.co_filename.startswith(SOURCES):
                where = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"
                break
        self.waits.append(f"{what} in {where}")


def card_of(tensor: Tensor) -> torch.device:
    """Where a tensor would lie."""
    if tensor.is_meta:
        return torch.device("meta")
    where: torch.device = getattr(tensor.untyped_storage(), "card", CPU)
    return where


def numbered(device: Any) -> torch.device:
    """A device as tensors name it: `cuda` is the first card."""
    where = torch.device(device)
    return torch.device("cuda", 0) if where == torch.device("cuda") else where


def pinned(tensor: Tensor) -> Tensor:
    """A copy that is never paged out."""
    copy = tensor.clone()
    copy.untyped_storage().is_page_locked = True
    return copy


def is_pinned(tensor: Tensor) -> bool:
    """Whether it is such a copy."""
    return getattr(tensor.untyped_storage(), "is_page_locked", False)


def _tensors(nested: Any) -> list[Tensor]:
    return list(_leaves(nested))


def _leaves(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, list | tuple | dict):
        for part in nested.values() if isinstance(nested, dict) else nested:
            yield from _leaves(part)


def _put(result: Any, where: torch.device) -> Any:
    for leaf in _tensors(result):
        if not leaf.is_meta:
            storage = leaf.untyped_storage()
            if not hasattr(storage, "card"):
                storage.card = where
    return result
