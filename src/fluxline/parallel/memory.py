"""What a rank holds while a picture is drawn. Predicted, not measured."""

from dataclasses import dataclass

from fluxline.approximation import remembered
from fluxline.degrees import shares
from fluxline.parallel.network import Network
from fluxline.parallel.way import Task, Way

TOKEN_TENSORS = 16
"""As wide as a token, that a forward has at once. Fitted to xDiT's 34.2 and 35.4 GB on one card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by what for."""

    weights: float
    remembered: float  # keys and values of evaluations before
    drawing: float  # of a forward, or of decoding where that takes more

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.remembered + self.drawing


def memory(network: Network, task: Task, way: Way, *, with_decoding: bool = True) -> Memory:
    """Of the rank that holds most."""
    image = network.image_tokens(task.width, task.height)
    rows = -(-task.rows // way.degrees.cfg)
    tokens = image + network.text_tokens
    stages = way.parts if way.is_staged else 1
    a_token = rows * network.hidden * network.value_bytes
    forward = TOKEN_TENSORS * a_token * -(-tokens * stages // way.parts)
    pixels = task.width * task.height / way.bands
    decoding = pixels * network.vae.pixel_bytes if with_decoding else 0.0
    kept = 0.0
    if way.approximation is not None:
        blocks = remembered(way.approximation, network.layers, way.parts)
        kept = 2.0 * a_token * tokens * blocks
    return Memory(
        weights=network.beside_bytes + _blocks(network, stages, way.degrees.tensor),
        remembered=kept,
        drawing=max(forward, decoding),
    )


def _blocks(network: Network, stages: int, tensor: int) -> float:
    """Blocks at the stage that has most of them, and a share of the modulation."""
    of_stages, first = [], 0
    for length in shares(network.layers, stages):
        here = slice(first, first + length)
        of_stages.append(sum(network.block_bytes[here]) / tensor)
        first += length
    return max(of_stages) + sum(network.modulation_bytes) / (stages * tensor)
