"""The pictures that a request gives its jobs. Runs on the caller's thread."""

from collections.abc import Sequence

from fluxline import images
from fluxline.engine.job import Picture, Source
from fluxline.errors import InvalidParams
from fluxline.models.spec import ModelSpec
from fluxline.request import GenerationRequest

Size = tuple[int, int]


class Sources:
    """A request's pictures as a model takes them; jobs of one size share what was made of them.

    Raises InvalidParams: one cannot be read, is not what the model takes, or fits no other.
    """

    def __init__(self, request: GenerationRequest, spec: ModelSpec) -> None:
        self._spec = spec
        source, references = _parts(request, spec)
        self._source = None if source is None else images.decode(source)
        self._mask = None
        if request.mask is not None and self._source is not None:
            self._mask = images.decode_mask(request.mask, self._source.shape[:2])
        self._references = [images.shrink(images.decode(file)) for file in references]
        self._made: dict[tuple[Size, Size], Source] = {}
        self._fitted: dict[tuple[Size, Size], tuple[Picture, ...]] = {}

    @property
    def shape(self) -> Size | None:
        """Width and height of the picture to start from, in px; None: there is none."""
        return None if self._source is None else _shape(self._source)

    @property
    def seen_shape(self) -> Size | None:
        """Width and height of the first picture that is looked at, in px; None: there is none, or
        only what it shows matters."""
        looks = self._spec.references
        if not self._references or looks is None or looks.fitted == "given":
            return None
        return _shape(self._references[0])

    @property
    def is_masked(self) -> bool:
        """Whether only a part of it is redrawn."""
        return self._mask is not None

    def start(self, asked: Size, drawn: Size) -> Source | None:
        """Fit the source to the size that was asked, and lay that out on the size that is drawn."""
        if self._source is None:
            return None
        if (asked, drawn) not in self._made:
            fitted = images.fit(self._source, *asked)
            picture = Picture(images.place(fitted, *drawn), images.digest(fitted))
            mask = asked_mask = None
            if self._mask is not None:
                asked_mask = images.fit(self._mask, *asked)
                mask = Picture(images.place(asked_mask, *drawn), images.digest(asked_mask))
            self._made[asked, drawn] = Source(picture, fitted, mask, asked_mask)
        return self._made[asked, drawn]

    def references(self, asked: Size, drawn: Size) -> tuple[Picture, ...]:
        """Fit the pictures that are looked at to the sizes at which the model does."""
        if (asked, drawn) not in self._fitted:
            self._fitted[asked, drawn] = tuple(
                self._reference(pixels, asked, drawn) for pixels in self._references
            )
        return self._fitted[asked, drawn]

    def _reference(self, pixels: images.Pixels, asked: Size, drawn: Size) -> Picture:
        looks = self._spec.references
        assert looks is not None  # else there is none
        size = self._spec.reference_size(_shape(pixels), drawn)
        if looks.fitted == "drawn":  # it lies over what is drawn, pixel by pixel
            fitted = images.place(images.fit(pixels, *asked), *drawn)
        elif looks.sizes:  # of nearly its shape: nothing of it is cut
            fitted = images.stretch(pixels, *size)
        else:
            fitted = images.fit(pixels, *size)
        return Picture(fitted, images.digest(fitted))


def _parts(request: GenerationRequest, spec: ModelSpec) -> tuple[bytes | None, Sequence[bytes]]:
    """The picture to start from and those to look at, as this model means them.

    One that looks at pictures and draws on none (no mask, no strength) looks at the source.
    """
    source, references = request.source, request.references
    looks = spec.references
    is_start = request.mask is not None or any(
        picture.params.strength is not None for picture in request.pictures()
    )
    if looks is not None and source is not None:
        if not is_start:
            references, source = (source, *references), None
        elif looks.start_too and not references:
            references = (source,)
    if request.mask is not None and source is None:
        raise InvalidParams("mask needs the picture that it is a mask of", field="mask")
    if spec.fills and (source is None or request.mask is None):
        message = f"{spec.name} fills a part of a picture: give image and mask"
        raise InvalidParams(message, field="image" if source is None else "mask")
    most = looks.most if looks else 0
    if len(references) > most:
        takes = f"looks at {most} at most" if most else "looks at no picture besides image"
        raise InvalidParams(f"{spec.name} {takes}; got {len(references)}", field="images")
    if looks and looks.is_needed and not references:
        message = f"{spec.name} draws after a picture: give image"
        if source is not None:
            message = f"{spec.name} draws after a picture: give one besides that to start from"
        raise InvalidParams(message, field="image" if source is None else "images")
    return source, references


def _shape(pixels: images.Pixels) -> Size:
    height, width = pixels.shape[:2]
    return width, height
