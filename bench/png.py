"""Which PNG encoder: filters and compressors against Pillow, in one interleaved run.

Run `python bench/png.py [rounds]`. Prints medians in ms and sizes in KiB for a photo-like and a
flat picture of 1024 px and a flat one of 128 px. Every candidate's stream is decoded and compared
first, so that no number stands for a wrong picture. Not a test of our encoder: tests/images is.
"""

import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from statistics import median

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fluxline.images import encode
from fluxline.images.containers import PNG_SIGNATURE, png_chunk

Pixels = NDArray[np.uint8]
Encoder = Callable[[Pixels], bytes]


def main() -> None:
    """Measure every encoder on every picture, in turn, and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    pictures = {"photo 1024": photo(1024), "flat 1024": flat(1024), "flat 128": flat(128)}
    ways = encoders()
    sizes = {(way, name): checked(ways[way], pictures[name]) for way in ways for name in pictures}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in sizes}
    for _ in range(rounds):
        for way, name in sizes:
            start = time.perf_counter()
            ways[way](pictures[name])
            times[way, name].append(time.perf_counter() - start)
    print(f"{'encoder':24}" + "".join(f"{name:>22}" for name in pictures))
    for way in ways:
        cells = (
            f"{median(times[way, name]) * 1e3:9.2f} ms{sizes[way, name] / 1024:6.0f} KiB"
            for name in pictures
        )
        print(f"{way:24}" + "".join(f"{cell:>22}" for cell in cells))


def encoders() -> dict[str, Encoder]:
    """Every candidate by its name in the table; the first is what the house uses."""
    filters = {"none": unfiltered, "sub": sub, "up": up, "average": average, "sub or up": best}
    return {
        "fluxline (up, isal 1)": partial(encode, format="png"),
        "Pillow level 1": partial(pillow, level=1),
        "Pillow level 6": partial(pillow, level=6),
        **{f"{name}, isal 1": partial(png, filtered=f, pack=isal_1) for name, f in filters.items()},
        "up, isal 0": partial(png, filtered=up, pack=partial(isal_zlib.compress, level=0)),
        "up, isal 3": partial(png, filtered=up, pack=partial(isal_zlib.compress, level=3)),
        "up, zlib 1": partial(png, filtered=up, pack=partial(zlib.compress, level=1)),
        "up, zlib run lengths": partial(png, filtered=up, pack=zlib_runs),
    }


def photo(side: int) -> Pixels:
    """Noise with a photograph's falling spectrum, related colours, one level of grain."""
    rng = np.random.default_rng(0)
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    weight = np.maximum(radius, 1 / side) ** -1.6
    fields = rng.standard_normal((4, side, side))
    smooth = np.fft.irfft2(weight * np.fft.rfft2(fields), s=(side, side))
    colours = smooth[0] + 0.35 * smooth[1:]
    colours = 128 + 50 * (colours - colours.mean()) / colours.std()
    grain = rng.standard_normal(colours.shape)
    return np.ascontiguousarray(
        np.clip(colours + grain, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    )


def flat(side: int) -> Pixels:
    """A smiling face as emoji fonts draw it: few colours, soft edges."""
    picture = Image.new("RGB", (2 * side, 2 * side), "white")
    draw, unit = ImageDraw.Draw(picture), 2 * side / 100
    draw.ellipse([10 * unit, 10 * unit, 90 * unit, 90 * unit], fill="#fc3")
    for centre in (35, 65):
        draw.ellipse([(centre - 6) * unit, 32 * unit, (centre + 6) * unit, 50 * unit], fill="#531")
    draw.chord([28 * unit, 40 * unit, 72 * unit, 78 * unit], 0, 180, fill="#a32")
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)).copy()


def checked(encoder: Encoder, pixels: Pixels) -> int:
    """Encode once, prove that the picture survives, give the file's size in bytes."""
    data = encoder(pixels)
    if not np.array_equal(np.asarray(Image.open(BytesIO(data))), pixels):
        raise AssertionError("an encoder changed the picture")
    return len(data)


def pillow(pixels: Pixels, *, level: int) -> bytes:
    """Pillow's own encoder: libpng's adaptive filters, zlib at `level`."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=level)
    return file.getvalue()


def png(
    pixels: Pixels, *, filtered: Callable[[Pixels], Pixels], pack: Callable[..., bytes]
) -> bytes:
    """A PNG file from one filter and one compressor."""
    height, width, _ = pixels.shape
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = png_chunk(b"IHDR", size + b"\x08\x02\0\0\0")
    body = pack(filtered(pixels.reshape(height, -1)))
    return PNG_SIGNATURE + header + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def isal_1(data: Pixels) -> bytes:
    """Intel's deflate, level 1."""
    return bytes(isal_zlib.compress(data, 1))


def zlib_runs(data: Pixels) -> bytes:
    """zlib looking for runs alone: Huffman codes do the rest."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 8, zlib.Z_RLE)
    return packer.compress(data.data) + packer.flush()


def unfiltered(rows: Pixels) -> Pixels:
    """Filter type 0."""
    return _typed(0, rows)


def sub(rows: Pixels) -> Pixels:
    """Filter type 1: less the pixel to the left."""
    return _typed(1, rows - _left(rows))


def up(rows: Pixels) -> Pixels:
    """Filter type 2: less the pixel above."""
    return _typed(2, rows - _above(rows))


def average(rows: Pixels) -> Pixels:
    """Filter type 3: less the mean of left and above, rounded down, without leaving uint8."""
    left, above = _left(rows), _above(rows)
    return _typed(3, rows - ((left & above) + ((left ^ above) >> 1)))


def best(rows: Pixels) -> Pixels:
    """Type 1 or 2, row by row, whichever leaves the smaller sum of magnitudes."""
    chosen, other = up(rows), sub(rows)
    is_smaller = _magnitude(other) < _magnitude(chosen)
    chosen[is_smaller] = other[is_smaller]
    return chosen


def _typed(kind: int, rows: Pixels) -> Pixels:
    return np.pad(rows, ((0, 0), (1, 0)), constant_values=kind)


def _left(rows: Pixels) -> Pixels:
    return np.pad(rows, ((0, 0), (3, 0)))[:, :-3]


def _above(rows: Pixels) -> Pixels:
    return np.pad(rows, ((1, 0), (0, 0)))[:-1]


def _magnitude(filtered: Pixels) -> NDArray[np.int64]:
    magnitudes = np.abs(filtered[:, 1:].view(np.int8)).astype(np.uint8)
    total: NDArray[np.int64] = magnitudes.sum(axis=1, dtype=np.int64)
    return total


if __name__ == "__main__":
    main()
