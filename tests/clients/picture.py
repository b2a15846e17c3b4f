"""Files that came out of a server, looked at as a viewer would."""

import base64
import io

from PIL import Image, ImageChops, ImageStat


def opened(data: bytes | str) -> Image.Image:
    """Decode a whole picture file, given as bytes or as base64."""
    raw = base64.b64decode(data, validate=True) if isinstance(data, str) else data
    with Image.open(io.BytesIO(raw)) as picture:
        picture.load()
        return picture


def distance(one: Image.Image, other: Image.Image) -> float:
    """How far two pictures of a size are from each other: levels of 255 a value, on average."""
    told = ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB")))
    return sum(told.mean) / len(told.mean)
