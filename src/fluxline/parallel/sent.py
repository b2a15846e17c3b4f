"""How many bytes a rank sends in one evaluation, by formula. Tests hold it against what is counted.

Exact for any number of tokens and heads: parts differ by one at most and nothing is padded.
"""

from dataclasses import dataclass, fields

from fluxline.degrees import Degrees, shares
from fluxline.parallel.network import Network
from fluxline.parallel.way import Way


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Bytes by what for."""

    ulysses: int = 0  # queries, keys and values to whom their heads are with, and the answer back
    ring: int = 0  # keys and values passed on
    tensor: int = 0  # sums
    keys: int = 0  # keys and values to everybody
    stages: int = 0  # tokens to who has the next blocks
    velocity: int = 0  # the answer to everybody
    rows: int = 0  # whole rows to who has the others

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def sent(
    network: Network, way: Way, *, image: int, rows: int = 1, rank: int = 0, is_synchronous: bool
) -> Sent:
    """Of an evaluation of so many image tokens and rows, by a rank of one replica.

    is_synchronous: of an approximation, that it is one of those that are exact. With piflux, whose
    parts wander, rank is the number of the part. A stage is taken to have whole rows.
    """
    degrees = way.degrees
    row, within = divmod(rank, way.parts * degrees.tensor)
    own_rows = shares(rows, degrees.cfg)[row]
    back = own_rows * image * network.channels * network.value_bytes * (degrees.cfg - 1)
    part = within // degrees.tensor
    if way.is_staged:
        told = 1 if way.approximation else (way.parts - 1) * own_rows
        return _between_stages(network, way.parts, image, own_rows, part, back, told=told)
    images, texts = shares(image, way.parts)[::-1], shares(network.text_tokens, way.parts)
    lengths = [text + its for text, its in zip(texts, images, strict=True)]
    velocity = own_rows * images[part] * network.channels * network.value_bytes * (way.parts - 1)
    keys = 0
    if way.approximation == "distrifusion" or (way.approximation and is_synchronous):
        a_token = 2 * own_rows * network.hidden * network.value_bytes * network.layers
        keys = a_token * lengths[part] * (way.parts - 1)
    if way.approximation:
        return Sent(keys=keys, velocity=velocity, rows=back)
    ulysses, ring = _attending(network, degrees, lengths, within)
    return Sent(
        ulysses=own_rows * ulysses,
        ring=own_rows * ring,
        tensor=_summing(network, degrees, own_rows * lengths[part]),
        velocity=velocity,
        rows=back,
    )


def _attending(
    network: Network, degrees: Degrees, lengths: list[int], within: int
) -> tuple[int, int]:
    """By ulysses and by ring, of one row and all layers."""
    part, share = divmod(within, degrees.tensor)
    ring_rank, rank = divmod(part, degrees.ulysses)
    heads = shares(network.heads, degrees.tensor)[share]
    own_heads = shares(heads, degrees.ulysses)[rank]
    a_head = network.hidden // network.heads * network.value_bytes * network.layers
    first = ring_rank * degrees.ulysses
    own, together = lengths[part], sum(lengths[first : first + degrees.ulysses])
    ulysses = (3 * own * (heads - own_heads) + (together - own) * own_heads) * a_head
    last = (ring_rank + 1) % degrees.ring * degrees.ulysses
    passed_on = sum(lengths) - sum(lengths[last : last + degrees.ulysses])
    return ulysses, 2 * passed_on * own_heads * a_head if degrees.ring > 1 else 0


def _summing(network: Network, degrees: Degrees, tokens: int) -> int:
    """A sum after attention and one after the rest in a double block, one for both in a single."""
    sums = 2 * network.double + network.single
    size = tokens * network.hidden * network.value_bytes
    return sums * 2 * size * (degrees.tensor - 1) // degrees.tensor


def _between_stages(
    network: Network, stages: int, image: int, rows: int, stage: int, back: int, *, told: int
) -> Sent:
    """All tokens onward, text once; from the last stage, float32, the picture to the first or the
    velocity of each row to all: as many times as told."""
    if stages == 1:
        return Sent(rows=back)
    if stage == stages - 1:
        return Sent(stages=told * image * network.channels * 4, rows=back)
    tokens = rows * (image + network.text_tokens)
    return Sent(stages=tokens * network.hidden * network.value_bytes, rows=back)
