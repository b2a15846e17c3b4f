"""A picture that a request gives its jobs to start from. Runs on the caller's thread."""

from functools import cache

from fluxline import images
from fluxline.engine.job import Source


class Given:
    """pixels: uint8 (h, w, 3), as they were given. Jobs of one size share one `Source`."""

    def __init__(self, pixels: images.Pixels) -> None:
        self._pixels = pixels
        self.source = cache(self._source)

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height, in px."""
        height, width, _ = self._pixels.shape
        return width, height

    def _source(self, asked: tuple[int, int], drawn: tuple[int, int]) -> Source:
        """Fit it to the size that was asked, and lay that out on the size that is drawn."""
        fitted = images.fit(self._pixels, *asked)
        return Source(images.place(fitted, *drawn), images.digest(fitted))
