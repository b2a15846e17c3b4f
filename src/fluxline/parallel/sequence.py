"""Exact sequence parallelism: every rank holds some tokens, and attention sees them all.

Blocks are handed another `attend` and never learn why. Two ways to attend, alone or together
(USP): *ulysses* trades tokens for heads, so that each rank attends over all tokens with some of the
heads; *ring* passes keys and values on from rank to rank and merges what each part gave by its log
sum of exponentials, in float32.

Sources: Jacobs et al. 2023, DeepSpeed Ulysses (arXiv:2309.14509); Liu et al. 2023, Ring Attention
(arXiv:2310.01889); Fang and Zhao 2024, USP (arXiv:2405.07719).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from fluxline.ops.attention import Partly, attend_by_head, attend_partly, merged
from fluxline.parallel.group import Waiting, shares
from fluxline.parallel.mesh import Mesh

Aside = Callable[[int, Tensor], Tensor | None]
"""What is to be added to the image tokens after a block, by its number."""
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Cut:
    """A sequence of text and image tokens in parts, one a rank: some of the text, some of the
    image, both contiguous."""

    text: tuple[int, ...]  # tokens of each part
    image: tuple[int, ...]

    @classmethod
    def of(cls, text: int, image: int, parts: int) -> "Cut":
        """Cut into parts as equal as may be."""
        return cls(shares(text, parts), shares(image, parts)[::-1])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each part, both kinds."""
        return tuple(t + i for t, i in zip(self.text, self.image, strict=True))

    def of_text(self, part: int) -> slice:
        """Where in the text a part lies."""
        return _slice(self.text, part)

    def of_image(self, part: int) -> slice:
        """Where in the image a part lies."""
        return _slice(self.image, part)

    def of_both(self, both: Tensor, part: int, dim: int) -> Tensor:
        """A part of something that has all text tokens, then all image tokens, along dim."""
        length = sum(self.text)
        text, image = both.tensor_split((length,), dim)
        pieces = (_piece(text, self.of_text(part), dim), _piece(image, self.of_image(part), dim))
        return torch.cat(pieces, dim)


def _slice(lengths: Sequence[int], part: int) -> slice:
    first = sum(lengths[:part])
    return slice(first, first + lengths[part])


def _piece(tensor: Tensor, where: slice, dim: int) -> Tensor:
    return tensor.narrow(dim, where.start, where.stop - where.start)


class SharedAttention:
    """Attends over a sequence whose parts lie at the ranks of a mesh.

    lengths: tokens of each part, in the order of `mesh.sequence`; keys: those that are attended to,
    where they are more. Any number of heads and tokens; with more ranks than heads some wait.
    """

    def __init__(self, mesh: Mesh, lengths: Sequence[int], keys: Sequence[int] = ()) -> None:
        self._ring, self._ulysses = mesh.ring, mesh.ulysses
        self._queries = _in_rows(lengths, mesh.ulysses.size)
        self._keys = _in_rows(keys or lengths, mesh.ulysses.size)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: (R, H, s, head_dim) of this rank's tokens, to (R, s, H * head_dim)."""
        if self._ulysses.size == 1:
            return self._around(q, torch.stack((k, v))).transpose(1, 2).flatten(2)
        queries = self._begin_by_head(q[None], self._queries[self._ring.rank])
        keys = self._begin_by_head(torch.stack((k, v)), self._keys[self._ring.rank])
        together = torch.cat(queries(), dim=3)[0]
        return self._by_token(self._around(together, torch.cat(keys(), dim=3)), q.shape[1])

    def _begin_by_head(self, tensors: Tensor, lengths: Sequence[int]) -> Waiting:
        """Of some tokens, all heads (K, R, H, s, ·): all tokens of the inner group, some heads."""
        group, heads = self._ulysses, shares(tensors.shape[2], self._ulysses.size)
        kinds, rows, _, _, width = tensors.shape
        shapes = [(kinds, rows, heads[group.rank], length, width) for length in lengths]
        return group.begin_swap(torch.split(tensors, list(heads), dim=2), shapes)

    def _by_token(self, attended: Tensor, all_heads: int) -> Tensor:
        """Of all tokens, some heads (R, h, S, ·): this rank's tokens, all heads (R, s, H ·)."""
        group, lengths = self._ulysses, self._queries[self._ring.rank]
        rows, _, _, width = attended.shape
        shapes = [
            (rows, count, lengths[group.rank], width) for count in shares(all_heads, group.size)
        ]
        came = group.swap(torch.split(attended, list(lengths), dim=2), shapes)
        return torch.cat(came, dim=1).transpose(1, 2).flatten(2)

    def _around(self, q: Tensor, block: Tensor) -> Tensor:
        """Attend to the keys and values (2, R, h, K, ·) of every rank of the ring: (R, h, S, ·)."""
        ring = self._ring
        if ring.size == 1:
            return attend_by_head(q, *block)
        after, before = (ring.rank + 1) % ring.size, (ring.rank - 1) % ring.size
        gathered: Partly | None = None
        for hop in range(ring.size):
            is_last = hop + 1 == ring.size
            coming = sum(self._keys[(ring.rank - hop - 1) % ring.size])
            following = block.new_empty((*block.shape[:3], coming, block.shape[4]))
            wait = _nothing if is_last else ring.exchange({after: block}, {before: following})
            part = attend_partly(q, *block)
            gathered = part if gathered is None else merged(gathered, part)
            wait()
            block = following
        assert gathered is not None
        return gathered[0].to(q.dtype)


def _in_rows(lengths: Sequence[int], width: int) -> list[tuple[int, ...]]:
    return [tuple(lengths[first : first + width]) for first in range(0, len(lengths), width)]


def _nothing() -> None:
    pass


class Turn(Protocol):
    """How the ranks evaluate a forward, where not exactly: who has which part, and attends how."""

    @property
    def parts(self) -> Sequence[int]:
        """The part of the sequence that each rank computes."""
        ...

    def begin(self, cut: Cut) -> None:
        """Another evaluation, of a sequence cut so."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What a block attends with; blocks ask in the same order in every evaluation."""
        ...


class SplitTransformer:
    """Runs a transformer over tokens on many ranks; called as the transformer itself is.

    Every rank is given the whole and gets the whole answer; between, it computes its part. turn:
    how, until it is set otherwise; None: exactly. is_whole: this rank computes all of it, alone.
    """

    def __init__(self, transformer: Callable[..., Tensor], mesh: Mesh) -> None:
        self._transformer, self._mesh = transformer, mesh
        self.turn: Turn | None = None
        self.is_whole = False

    def __call__(
        self,
        x: Tensor,
        text: Tensor,
        modulation: Tensor,
        rope: Tensor,
        *,
        aside: Aside | None = None,
        memory: Iterable[Pair] | None = None,
    ) -> Tensor:
        """Velocity (R, N, C) of image tokens x (R, N, C), with text (R, L, D).

        rope: (R or 1, L + N, ·). aside: what is added to all image tokens after a block. memory:
        keys and values (R, H, T, ·) for each block that are attended to besides.
        """
        if self.is_whole:
            beside = {"aside": aside, "memory": memory}
            given = {name: value for name, value in beside.items() if value is not None}
            return self._transformer(x, text, modulation, rope, **given)
        group, turn = self._mesh.sequence, self.turn
        cut = Cut.of(text.shape[1], x.shape[1], group.size)
        parts: Sequence[int] = range(group.size)
        more: dict[str, object] = {}
        if turn is not None:
            if memory is not None:
                raise ValueError("what is remembered of pictures is attended to exactly only")
            turn.begin(cut)
            parts, more["attend"] = turn.parts, turn.attend
        elif memory is None:
            more["attend"] = SharedAttention(self._mesh, cut.lengths)
        else:
            first, memory = _peeked(memory)
            seen = shares(first[0].shape[2], group.size)
            keys = [own + besides for own, besides in zip(cut.lengths, seen, strict=True)]
            where = _slice(seen, group.rank)
            more["memory"] = ((k[:, :, where], v[:, :, where]) for k, v in memory)
            more["attend"] = SharedAttention(self._mesh, cut.lengths, keys)
        part = parts[group.rank]
        if aside is not None:
            more["aside"] = _aside_of(aside, cut.of_image(part))
        answer = self._transformer(
            x[:, cut.of_image(part)],
            text[:, cut.of_text(part)],
            modulation,
            cut.of_both(rope, part, dim=1),
            **more,
        )
        return self._whole(answer, cut, parts)

    def _whole(self, answer: Tensor, cut: Cut, parts: Sequence[int]) -> Tensor:
        """Every rank's answer, in the order of the parts."""
        group = self._mesh.sequence
        if group.size == 1:
            return answer
        came = group.begin_gather(answer, [cut.image[part] for part in parts], dim=1)()
        in_order = sorted(range(group.size), key=lambda rank: parts[rank])
        return torch.cat([came[rank] for rank in in_order], dim=1)


def _aside_of(aside: Aside, where: slice) -> Aside:
    """What is said aside, to some of the image tokens."""

    def said(number: int, image: Tensor) -> Tensor | None:
        added = aside(number, image)
        return None if added is None else added[:, where]

    return said


def _peeked(memory: Iterable[Pair]) -> tuple[Pair, Iterable[Pair]]:
    """The first of many, and all of them."""
    rest = iter(memory)
    first = next(rest)
    return first, chain((first,), rest)
