"""What a prompt became, and how a row is steered by it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the text encoders made of one prompt; on the model's device, shared and never written.

    text: (L, D) as the transformer reads it. pooled: (pooled_dim,). truncated: the prompt was
    longer than the model reads. more: what else its family reads, by names of its own.
    """

    text: Tensor
    pooled: Tensor
    truncated: bool = False
    more: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        more = sum(tensor.nbytes for tensor in self.more.values())
        return self.text.nbytes + self.pooled.nbytes + more


Steer = Callable[[Tensor, Tensor], Tensor]
"""Takes a row's velocity and its negative's, (N, C) both, gives the one that the sampler is sent.
Each job has its own, asked in the order of its evaluations: it may remember."""

Steering = Callable[[float, Conditioning], Steer]
"""Makes a job's steer, from its cfg_scale and what its prompt became."""


def plain_steer(cfg_scale: float, conditioning: Conditioning) -> Steer:
    """Go on from the negative's velocity through the row's own.

    Source: Ho and Salimans 2022, Classifier-Free Diffusion Guidance (arXiv:2207.12598).
    """
    return lambda velocity, negative: negative + cfg_scale * (velocity - negative)
