"""Items of AVIF files are found in every layout the standard knows, and no layout can hang us."""

import struct
import time

import pytest

from fluxline.errors import InvalidParams
from fluxline.images import encode, read_recipe
from fluxline.images.boxes import find_item
from tests.images.pictures import noise
from tests.images.test_recipe import PLAIN

NOTE = b"the note"


def box(kind, body, *, wide=False):
    if wide:
        return struct.pack(">I4sQ", 1, kind, 16 + len(body)) + body
    return struct.pack(">I4s", 8 + len(body), kind) + body


def file(iloc, *, infe_version=2, iinf_version=0, wide=False):
    """A file with items 1 (a picture) and 7 (the note)."""
    width = ">IH4s" if infe_version == 3 else ">HH4s"
    entries = b"".join(
        box(b"infe", bytes([infe_version, 0, 0, 0]) + struct.pack(width, number, 0, kind) + b"\0")
        for number, kind in ((1, b"av01"), (7, b"Exif"))
    )
    counted = struct.pack(">I" if iinf_version else ">H", 2)
    iinf = box(b"iinf", bytes([iinf_version, 0, 0, 0]) + counted + entries)
    start = box(b"ftyp", b"avif\0\0\0\0")
    return start + box(b"free", NOTE) + box(b"meta", b"\0" * 4 + iinf + iloc, wide=wide)


NOTE_AT = len(box(b"ftyp", b"avif\0\0\0\0")) + 8


def iloc_0(*, extents=1):
    picture = struct.pack(">HHHIIII", 1, 0, 2, 0, 4, 8, 4)
    note = struct.pack(">HHH", 7, 0, extents) + struct.pack(">II", NOTE_AT, len(NOTE)) * extents
    return box(b"iloc", b"\0" * 4 + struct.pack(">HH", 0x4400, 2) + picture + note)


def iloc_2(*, construction=0):
    """Item numbers of four bytes, offsets of eight, a base and an index."""
    head = b"\2\0\0\0" + struct.pack(">HI", 0x8448, 1)
    item = struct.pack(">IHHIH", 7, construction, 0, NOTE_AT - 3, 1) + struct.pack(
        ">QQI", 99, 3, len(NOTE)
    )
    return box(b"iloc", head + item)


@pytest.mark.parametrize(
    "data",
    [
        file(iloc_0()),
        file(iloc_0(), wide=True),
        file(iloc_0(), infe_version=3, iinf_version=1),
        file(iloc_2()),
    ],
)
def test_item_is_found_in_every_layout(data):
    assert find_item(data, b"Exif") == NOTE


@pytest.mark.parametrize(
    "data",
    [
        file(iloc_0(extents=2)),
        file(iloc_2(construction=1)),
        file(b""),
        box(b"ftyp", b"avif\0\0\0\0"),
    ],
)
def test_item_that_is_not_one_piece_of_the_file_is_taken_for_none(data):
    assert find_item(data, b"Exif") == b""


def test_box_that_says_nothing_of_its_length_reaches_to_the_end():
    data = file(iloc_0())
    at = data.index(b"meta") - 4
    assert find_item(data[:at] + b"\0\0\0\0" + data[at + 4 :], b"Exif") == NOTE


@pytest.mark.parametrize("size", [1, 2, 7, 2**31])
def test_box_of_impossible_length_is_a_broken_file(size):
    data = encode(noise(2, 2), format="avif", recipe=PLAIN)
    at = data.index(b"iinf") - 4
    with pytest.raises(InvalidParams, match="broken"):
        read_recipe(data[:at] + struct.pack(">I", size) + data[at + 4 :])


def test_list_that_takes_no_bytes_costs_no_time():
    many = struct.pack(">HHH", 1, 0, 65535) * 65535  # 4 billion parts of no length
    iloc = box(b"iloc", b"\0" * 4 + struct.pack(">HH", 0, 65535) + many)
    began = time.perf_counter()
    assert find_item(file(iloc), b"Exif") == b""
    assert time.perf_counter() - began < 5
