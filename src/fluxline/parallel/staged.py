"""A transformer in stages, a rank each: exact, and each rank holds its own blocks alone.

A forward walks from stage to stage. One of several rows goes a few rows at a time, so that a stage
has the next ones as soon as it has passed on those before; a single row has the others wait.
What a single picture gains from stages it gains from PipeFusion, which is not exact.

Source of the name and of the idea: Huang et al. 2019, GPipe (arXiv:1811.06965).
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fluxline.errors import ConfigError
from fluxline.ops.attention import attend
from fluxline.ops.bound import Staged
from fluxline.parallel.group import shares
from fluxline.parallel.stages import Stages

PIECES = 2  # of a forward's rows, for each stage: more keep stages busier, and are smaller


class StagedTransformer:
    """Runs this rank's blocks of a transformer; called as the transformer itself is.

    Every rank is given the whole. What the last gives is the velocity; what others give has its
    shape alone.
    """

    def __init__(self, transformer: Staged, stages: Stages) -> None:
        self._transformer, self._stages = transformer, stages

    def __call__(
        self,
        x: Tensor,
        text: Tensor,
        modulation: Tensor,
        rope: Tensor,
        *,
        aside: Callable[..., object] | None = None,
        memory: Iterable[object] | None = None,
    ) -> Tensor:
        """Velocity (R, N, C) of image tokens x (R, N, C), with text (R, L, D).

        rope: (R or 1, L + N, ·). Raises ConfigError for what stages do not hand on.
        """
        if aside is not None or memory is not None:
            message = "stages draw after no map and remember no picture"
            raise ConfigError(f"{message}: take another axis of parallel than stages")
        stages, words = self._stages, text.shape[1]
        image = self._transformer.enter(x)
        if not stages.is_first:
            both = image.new_empty(len(x), words + x.shape[1], image.shape[2])
            stages.receive(both)()
            text, image = both[:, :words], both[:, words:]
        blocks = self._transformer.bound_blocks(modulation)
        for block in blocks[stages.share(len(blocks))]:
            image, text = block(image, text, rope, attend)
        if not stages.is_last:
            stages.send(torch.cat((text, image), dim=1), ahead=PIECES)
        return self._transformer.leave(image, modulation)

    def evaluate(self, rows: int, run: Callable[[slice], Tensor]) -> Tensor:
        """All rows (R, N, C) of a forward, which `run` gives piece by piece by calling this."""
        answer = torch.cat([run(piece) for piece in pieces(rows, self._stages.count)])
        return self._stages.tell(answer)


def pieces(rows: int, stages: int) -> Sequence[slice]:
    """Rows of a forward in pieces that follow one another."""
    lengths = shares(rows, min(rows, PIECES * stages))
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
