"""Cards that are not there: tensors of the CPU that know which card they would lie on.

As on real ones, an operation on tensors of two cards is an error. What a storage would lie on is
written on it, so views and parameters know too.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
PASSES = (torch.Tensor.data.__set__, torch._has_compatible_shallow_copy_type)
READS_DEVICE = torch.Tensor.device.__get__
READS_IS_CUDA = torch.Tensor.is_cuda.__get__
MOVES = {torch.Tensor.to, torch.Tensor.cpu}
FILLS = {torch.Tensor.copy_, torch.Tensor.__setitem__}
INDEXES = {torch.Tensor.__getitem__}


class TwoCards(RuntimeError):
    """What a real machine would have raised."""


class Cards(TorchFunctionMode):
    """Inside, `cuda:0`, `cuda:1` and so on can be computed on, slowly. carried: how often a tensor
    went from one to another."""

    carried = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if any(func == one for one in PASSES):
            return func(*args)
        if func == READS_DEVICE:
            return card_of(args[0])
        if func == READS_IS_CUDA:
            return card_of(args[0]) != CPU
        if func in MOVES:
            return self._moved(func, args, kwargs)
        made = kwargs.get("device") is not None
        where = torch.device(kwargs.pop("device")) if made else self._common(func, args, kwargs)
        if made:
            kwargs["device"] = CPU
        return _put(func(*args, **kwargs), where)

    def _moved(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor, *rest = args
        source = card_of(tensor)
        if func == torch.Tensor.cpu:
            where = CPU
        elif rest and isinstance(rest[0], torch.dtype):
            where = source
        elif rest and isinstance(rest[0], Tensor):
            where = card_of(rest.pop(0))
        else:
            where = torch.device((rest.pop(0) if rest else kwargs.pop("device", None)) or source)
        said = {**dict(zip(("dtype", "non_blocking", "copy"), rest, strict=False)), **kwargs}
        moved = tensor.to(**{name: value for name, value in said.items() if value is not None})
        if where != source:
            self.carried += 1
            moved = moved.clone()
        return _put(moved, where)

    def _common(self, func: Any, args: Any, kwargs: Any) -> torch.device:
        """The one card that all lie on; numbers may lie beside, and indices and sources."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func in INDEXES or func in FILLS:
            tensors = tensors[:1]
        cards = {card_of(tensor) for tensor in tensors if tensor.dim()}
        if len(cards) > 1:
            raise TwoCards(f"{func} meets tensors of {sorted(map(str, cards))}")
        return cards.pop() if cards else card_of(tensors[0]) if tensors else CPU


def card_of(tensor: Tensor) -> torch.device:
    """Where a tensor would lie."""
    if tensor.is_meta:
        return torch.device("meta")
    where: torch.device = getattr(tensor.untyped_storage(), "card", CPU)
    return where


def _put(result: Any, where: torch.device) -> Any:
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor) and not leaf.is_meta:
            storage = leaf.untyped_storage()
            if not hasattr(storage, "card"):
                storage.card = where
    return result
