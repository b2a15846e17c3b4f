"""The picture that a request gives its jobs to start from. Runs on the caller's thread."""

from fluxline import images
from fluxline.engine.job import Source


class Sources:
    """pixels: uint8 (h, w, 3), as they were given. Jobs of one size share one `Source`."""

    def __init__(self, pixels: images.Pixels) -> None:
        self._pixels = pixels
        self._made: dict[tuple[tuple[int, int], tuple[int, int]], Source] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height, in px."""
        height, width, _ = self._pixels.shape
        return width, height

    def of(self, asked: tuple[int, int], drawn: tuple[int, int]) -> Source:
        """Fit it to the size that was asked, and lay that out on the size that is drawn."""
        if (asked, drawn) not in self._made:
            fitted = images.fit(self._pixels, *asked)
            made = Source(images.place(fitted, *drawn), images.digest(fitted))
            self._made[asked, drawn] = made
        return self._made[asked, drawn]
