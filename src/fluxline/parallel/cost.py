"""What a way of drawing costs: seconds and bytes, with their parts named. Predicted, not measured.

A block takes its products at the speed that the card reaches, a time of its own however few tokens
it has, and the part of its exchanges that nothing covers. docs/parallel.md holds all this against
published figures.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache

from fluxline.approximation import usual_sync
from fluxline.parallel.machine import Machine
from fluxline.parallel.memory import Memory, memory
from fluxline.parallel.network import Network
from fluxline.parallel.sent import Sent, sent
from fluxline.parallel.way import Task, Way

HALO_BYTES = 2 * 7.6e6 / 1024  # to both neighbours, for a pixel of width, all convolutions
HALOS = 28 + 2 * 25  # messages: of convolutions, and of group norms there and back
TRADES = 3  # of a layer with ulysses: queries; keys and values; answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Of all pictures that are asked for together, by what for."""

    encode: float = 0.0
    products: float = 0.0  # linear layers
    attention: float = 0.0
    blocks: float = 0.0  # that each takes however few tokens it has
    exchange: float = 0.0  # waited for
    idle: float = 0.0  # stages before their first part and after their last
    decode: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, field.name) for field in fields(self)))

    def times(self, count: float) -> "Seconds":
        """So often."""
        return Seconds(**{f.name: count * getattr(self, f.name) for f in fields(self)})

    def plus(self, other: "Seconds") -> "Seconds":
        """And others."""
        return Seconds(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a task in one way.

    sent: in an evaluation after those of an approximation that are exact, by the first rank or the
    last, who sends more; others send as much up to a token and a head. covered_s: of its exchanges,
    what passes while cards compute.
    """

    seconds: Seconds
    covered_s: float
    sent: Sent
    memory: Memory  # of the rank that holds most


@lru_cache(maxsize=4096)
def cost(network: Network, machine: Machine, task: Task, way: Way) -> Cost:
    """Predict what a task costs on a machine, drawn in one way."""
    later = _Evaluation(network, machine, task, way, is_synchronous=way.approximation is None)
    first = _Evaluation(network, machine, task, way, is_synchronous=True)
    count = min(task.steps, exact_evaluations(task, way))
    picture = first.seconds.times(count).plus(later.seconds.times(task.steps - count))
    if way.approximation == "pipefusion" and task.steps > count:
        idle = (task.steps - count - 1) * later.gap_s + (way.parts - 1) * later.patch_s
        picture = picture.plus(Seconds(idle=idle))
    picture = picture.plus(Seconds(decode=_decode_s(network, machine, task, way.bands)))
    rounds = math.ceil(task.pictures / way.degrees.data)
    encode = 2 * network.encoder_weights * network.text_tokens * task.rows / machine.flops
    return Cost(
        seconds=picture.times(rounds).plus(Seconds(encode=encode)),
        covered_s=later.covered_s,
        sent=later.sent,
        memory=memory(network, task, way),
    )


def exact_evaluations(task: Task, way: Way) -> int:
    """How many an approximation begins with."""
    if way.approximation is None or way.parts == 1:
        return 0
    return usual_sync(way.approximation, task.steps)


class _Evaluation:
    """What a rank does in one evaluation."""

    def __init__(
        self, network: Network, machine: Machine, task: Task, way: Way, *, is_synchronous: bool
    ) -> None:
        self._network, self._machine, self._way = network, machine, way
        self._image = network.image_tokens(task.width, task.height)
        self._rows = -(-task.rows // way.degrees.cfg)
        self._is_synchronous = is_synchronous
        self.covered_s = self.patch_s = self.gap_s = 0.0
        self.sent = max(
            (self._sent_by(task, rank) for rank in (0, way.degrees.ranks - 1)),
            key=lambda sent: sent.total,
        )
        self.seconds = self._in_stages() if way.is_staged else self._by_tokens()

    def _sent_by(self, task: Task, rank: int) -> Sent:
        return sent(
            self._network,
            self._way,
            image=self._image,
            rows=task.rows,
            rank=rank,
            is_synchronous=self._is_synchronous,
        )

    def _whole(self) -> tuple[float, float]:
        """Seconds of products and of attention, on one rank."""
        network, tokens = self._network, self._image + self._network.text_tokens
        a_layer = self._rows * tokens * network.hidden * network.layers / self._machine.flops
        return 2 * network.block_weights * network.hidden * a_layer, 4 * tokens * a_layer

    def _by_tokens(self) -> Seconds:
        network, degrees = self._network, self._way.degrees
        tokens = self._image + network.text_tokens
        products, attention = self._whole()
        products *= -(-tokens // self._way.parts) / tokens / degrees.tensor
        if self._way.approximation is None:
            heads = -(-network.heads // (degrees.ulysses * degrees.tensor)) / network.heads
            attention *= heads * -(-tokens // degrees.ring) / tokens
        else:
            attention *= -(-tokens // self._way.parts) / tokens
        blocks = network.layers * (self._machine.block_s + (degrees.ring - 1) * self._machine.hop_s)
        exchange = self._answering_s()
        if self._way.approximation is None:
            exchange += self._trading_s() + self._summing_s() + self._passing_s(attention)
        else:
            exchange += self._telling_s(products + attention + blocks)
        return Seconds(products=products, attention=attention, blocks=blocks, exchange=exchange)

    def _in_stages(self) -> Seconds:
        """Whole through one stage after another at first; then in patches, all stages at once."""
        network, stages = self._network, self._way.parts
        products, attention = self._whole()
        blocks = network.layers * self._machine.block_s
        a_whole = self._hop_s(self.sent.stages)
        if self._is_synchronous or stages == 1:
            whole = Seconds(products=products, attention=attention, blocks=blocks)
            return whole.plus(Seconds(exchange=(stages - 1) * a_whole))
        patches, share = self._way.flowing, -(-network.layers // stages) / network.layers
        computing = share * ((products + attention) / patches + blocks)
        hop = self._hop_s(self.sent.stages / patches)
        self.patch_s = max(computing, hop)
        self.covered_s = patches * min(computing, hop)
        tokens = self._image + network.text_tokens
        first = max(1 / patches, (network.text_tokens + 1) / tokens)  # all the text is in it
        first_s = share * ((products + attention) * first + blocks)
        self.gap_s = max(0.0, stages * first_s - patches * self.patch_s)
        return Seconds(
            products=share * products,
            attention=share * attention,
            blocks=patches * share * blocks,
            exchange=patches * (self.patch_s - computing),
        )

    def _hop_s(self, size: float) -> float:
        if self._way.parts == 1:
            return 0.0
        return self._machine.pass_on_s(size, stride=1, count=self._way.parts)

    def _trading_s(self) -> float:
        """Tokens for heads and back."""
        degrees, layers = self._way.degrees, self._network.layers
        if degrees.ulysses == 1:
            return 0.0
        return (TRADES * layers) * self._machine.all_to_all_s(
            self.sent.ulysses / (TRADES * layers), stride=degrees.tensor, count=degrees.ulysses
        )

    def _passing_s(self, attention_s: float) -> float:
        """Keys around the ring, as far as they are not there before what is there is attended."""
        degrees, layers = self._way.degrees, self._network.layers
        if degrees.ring == 1:
            return 0.0
        hops = layers * (degrees.ring - 1)
        stride = degrees.tensor * degrees.ulysses
        hop = self._machine.pass_on_s(self.sent.ring / hops, stride=stride, count=degrees.ring)
        attending = attention_s / layers / degrees.ring
        self.covered_s += hops * min(hop, attending)
        return hops * max(0.0, hop - attending)

    def _summing_s(self) -> float:
        degrees, network = self._way.degrees, self._network
        if degrees.tensor == 1:
            return 0.0
        hops = 2 * (degrees.tensor - 1) * (2 * network.double + network.single)
        return hops * self._machine.pass_on_s(
            self.sent.tensor / hops, stride=1, count=degrees.tensor
        )

    def _telling_s(self, computing_s: float) -> float:
        """All keys to everybody."""
        if not self.sent.keys:
            return 0.0
        layers = self._network.layers
        took = layers * self._machine.all_to_all_s(
            self.sent.keys / layers, stride=1, count=self._way.parts
        )
        if self._is_synchronous:
            return took
        self.covered_s += min(took, computing_s)
        return max(0.0, took - computing_s)

    def _answering_s(self) -> float:
        """The velocity to everybody, and rows to who has the others."""
        degrees, took = self._way.degrees, 0.0
        if self._way.parts > 1:
            took += self._machine.all_to_all_s(
                self.sent.velocity, stride=degrees.tensor, count=self._way.parts
            )
        if degrees.cfg > 1:
            stride = degrees.tensor * self._way.parts
            took += self._machine.all_to_all_s(self.sent.rows, stride=stride, count=degrees.cfg)
        return took


def _decode_s(network: Network, machine: Machine, task: Task, bands: int) -> float:
    """The VAE, whose middle every band computes whole."""
    pixels, vae = task.width * task.height, network.vae
    attention = 4 * (pixels / 64) ** 2 * vae.attention_width / machine.flops
    middle, rest = vae.middle_flops, vae.pixel_flops - vae.middle_flops
    computing = attention + pixels * (middle + rest / bands) / machine.vae_flops
    if bands == 1:
        return computing
    a_halo = HALO_BYTES * task.width / HALOS
    a_band = 3 * pixels / bands * network.value_bytes * (bands - 1)
    exchanging = HALOS * machine.pass_on_s(a_halo, stride=1, count=bands)
    return computing + exchanging + machine.all_to_all_s(a_band, stride=1, count=bands)
