"""What is drawn, and on how many ranks in which way. Values only."""

from dataclasses import dataclass

from fluxline.approximation import ApproximationName
from fluxline.degrees import Degrees

ALONE = Degrees()


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Pictures of one size, asked for together. is_steered: true guidance, two rows a picture."""

    width: int  # px
    height: int
    steps: int
    pictures: int = 1
    is_steered: bool = False

    @property
    def rows(self) -> int:
        """Of an evaluation of one picture."""
        return 2 if self.is_steered else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Ranks along each axis; an approximation takes those of the sequence, or stages, for its own.

    patches: of a picture, where it goes through stages; 0: one more than stages. bands: parts of a
    picture in which the VAE draws, a rank each.
    """

    degrees: Degrees = ALONE
    approximation: ApproximationName | None = None
    patches: int = 0
    bands: int = 1

    @property
    def parts(self) -> int:
        """Of the tokens or, with stages, of the blocks."""
        return self.degrees.sequence * self.degrees.stages

    @property
    def is_staged(self) -> bool:
        """Whether ranks have some of the blocks each, and not some of the tokens."""
        return self.degrees.stages > 1 or self.approximation == "pipefusion"

    @property
    def flowing(self) -> int:
        """Patches, where there are stages: one for each, and one on its way between two."""
        return self.patches or self.parts + 1

    @property
    def ranks(self) -> int:
        """Of all replicas."""
        return self.degrees.data * self.degrees.ranks

    def __str__(self) -> str:
        if self.approximation is None:
            return self.degrees.spelt or "none"
        said = f"{self.approximation} on {self.parts}"
        others = Degrees(data=self.degrees.data, cfg=self.degrees.cfg)
        return f"{others.spelt},{said}" if others.spelt else said
