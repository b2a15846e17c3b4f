"""What comes from outside is a picture, upright and bearable, or an error that says why not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fluxline.errors import InvalidParams
from fluxline.images import decode, decode_hole, digest, encode
from fluxline.images.containers import PNG_SIGNATURE, png_chunk
from tests.images.pictures import noise, ramp


def file_of(picture, format, **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def test_a_png_gives_its_very_pixels():
    pixels = noise(13, 7)
    assert np.array_equal(decode(encode(pixels, format="png")), pixels)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_the_other_formats_are_read_as_what_they_look_like(format):
    pixels = ramp(64, 48)
    read = decode(file_of(Image.fromarray(pixels), format, quality=95))
    assert np.abs(read.astype(int) - pixels).mean() < 4


def test_a_photo_taken_on_its_side_stands_upright():
    pixels = ramp(40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to see it"
    read = decode(file_of(Image.fromarray(pixels), "JPEG", quality=95, exif=exif))
    assert read.shape == (40, 20, 3)
    assert np.abs(read.astype(int) - np.rot90(pixels, -1)).mean() < 4


@pytest.mark.parametrize(("alpha", "hole"), [(0, [[255, 0]]), (1, None), (255, None)])
def test_a_picture_has_a_hole_where_it_is_wholly_transparent(alpha, hole):
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, alpha))
    found = decode_hole(file_of(picture, "PNG"))

    assert (found is None) if hole is None else np.array_equal(found, hole)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_for_a_hole_a_picture_without_transparency_is_not_unpacked(format):
    whole = file_of(Image.fromarray(noise(64, 64)), format)
    cut = whole[: len(whole) // 2]  # who unpacks it finds that it is not whole
    with pytest.raises(InvalidParams, match="must be a whole"):
        decode(cut)

    assert decode_hole(cut) is None


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_one_colour_that_is_said_to_be_transparent_is_a_hole(mode):
    picture = Image.fromarray(np.array([[0, 255]], np.uint8)).convert(mode)
    clear = (0, 0, 0) if mode == "RGB" else picture.getpixel((0, 0))

    assert decode_hole(file_of(picture, "PNG", transparency=clear)).tolist() == [[255, 0]]


def test_what_is_transparent_lies_on_white():
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    clear.putpixel((1, 0), (0, 0, 0, 0))
    assert decode(file_of(clear, "PNG")).tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_whatever_says_colour_otherwise_comes_out_as_red_green_and_blue(mode):
    if mode == "I;16":
        picture = Image.fromarray(np.array([[0, 65535], [65535, 0]], np.uint16))
    else:
        picture = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert(mode)
    read = decode(file_of(picture, "JPEG" if mode == "CMYK" else "PNG"))
    assert read.shape == (2, 2, 3)
    assert (
        np.abs(read[..., 0].astype(int) - [[0, 255], [255, 0]]).max() < 20
    )  # a JPEG of two colours


def test_of_a_film_the_first_picture_is_taken():
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    file = file_of(first, "PNG", save_all=True, append_images=[second])
    assert decode(file)[0, 0].tolist() == [255, 0, 0]


def bomb(width, height):
    """A file of a few kilobytes that says it is this large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1_000_000), 9)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(png_chunk(kind, data) for kind, data in chunks)


def swollen_text():
    """A picture of one pixel whose comment unpacks to a hundred megabytes."""
    packed = zlib.compress(bytes(100_000_000), 9)
    whole = encode(noise(1, 1), format="png")
    return whole[:33] + png_chunk(b"zTXt", b"Comment\0\0" + packed) + whole[33:]


PICTURE = encode(noise(32, 32), format="png")


BROKEN = {
    "empty": b"",
    "text": b"no picture",
    "cut": PICTURE[: len(PICTURE) // 2],
    "png": PICTURE[:8] + bytes(100),
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(100),
    "webp": b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(100),
    "gif": file_of(Image.new("RGB", (4, 4)), "GIF"),
    "tiff": file_of(Image.new("RGB", (4, 4)), "TIFF"),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "text-bomb": swollen_text(),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_whole_picture_is_refused_as_such(data):
    with pytest.raises(InvalidParams, match="image must be a whole PNG") as caught:
        decode(data)
    assert caught.value.field == "image"


@pytest.mark.parametrize("size", [(100_000, 100_000), (8_001, 6_250), (2**30, 1)])
def test_what_says_it_is_huge_is_not_unpacked(size):
    with pytest.raises(InvalidParams, match="it may have 50 megapixels"):
        decode(bomb(*size))


def test_a_jpeg_that_is_drawn_over_and_over_is_not():
    whole = file_of(Image.fromarray(noise(64, 64)), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    scan, end = whole[start:-2], whole[-2:]
    with pytest.raises(InvalidParams, match="it may have 50 megapixels"):
        decode(whole[:start] + 200 * scan + end)
    assert decode(whole).shape == (64, 64, 3)


def test_equal_pixels_have_one_digest_and_others_another():
    pixels = noise(8, 4)
    assert digest(pixels) == digest(pixels.copy())
    assert digest(pixels) != digest(pixels.reshape(8, 4, 3))
    assert digest(pixels) != digest(pixels ^ 1)
