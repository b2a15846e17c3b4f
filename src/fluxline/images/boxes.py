"""The boxes of an AVIF file: enough to find the bytes of one item. No pixel is decoded.

A hostile file costs no more than its own length: nothing here walks a list without consuming it.
Source: ISO/IEC 14496-12, the meta box with its iinf (which items) and iloc (where they lie).
"""

import struct
from collections.abc import Iterator

AVIF_START = b"ftypavif"
"""What stands from byte 4 on in an AVIF file."""


def find_item(data: bytes, kind: bytes) -> bytes:
    """Return the bytes of the first item of a kind (4 letters); b"" where there is none.

    An item in several parts, or outside the file's own bytes, is taken for none. Raises
    struct.error and ValueError where the structure is broken.
    """
    meta = _child(data, b"meta", 0, len(data))
    if meta is None:
        return b""
    begin, end = meta[0] + 4, meta[1]  # after version and flags, as in every full box
    about, where = _child(data, b"iinf", begin, end), _child(data, b"iloc", begin, end)
    if about is None or where is None:
        return b""
    number = _item_number(data, kind, *about)
    return b"" if number is None else _item(data, number, where[0])


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first and last byte (excluded) of the body of every box from `at` to `end`."""
    while at < end:
        size, kind = struct.unpack_from(">I4s", data, at)
        header = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            header = 16
        elif size == 0:  # to the end
            size = end - at
        if size < header or at + size > end:
            raise ValueError("box")
        yield kind, at + header, at + size
        at += size


def _child(data: bytes, kind: bytes, at: int, end: int) -> tuple[int, int] | None:
    found = ((begin, stop) for name, begin, stop in _boxes(data, at, end) if name == kind)
    return next(found, None)


def _item_number(data: bytes, kind: bytes, at: int, end: int) -> int | None:
    """The number of the first item of a kind, from the body of iinf."""
    entries_at = at + (6 if data[at : at + 1] == b"\0" else 8)
    for name, begin, _ in _boxes(data, entries_at, end):
        if name != b"infe":
            continue
        (version,) = struct.unpack_from(">B", data, begin)
        number, _protection, found = struct.unpack_from(
            ">IH4s" if version == 3 else ">HH4s", data, begin + 4
        )
        if version in (2, 3) and found == kind:
            return int(number)
    return None


def _item(data: bytes, wanted: int, at: int) -> bytes:
    """The bytes of an item, from the body of iloc."""
    version, sizes = struct.unpack_from(">B3xH", data, at)
    offset_size, length_size, base_size, index_size = (
        sizes >> shift & 15 for shift in (12, 8, 4, 0)
    )
    extent_size = (index_size if version else 0) + offset_size + length_size
    (count,) = struct.unpack_from(">I" if version == 2 else ">H", data, at + 6)
    at += 10 if version == 2 else 8
    for _ in range(count):
        (number,) = struct.unpack_from(">I" if version == 2 else ">H", data, at)
        at += 4 if version == 2 else 2
        is_elsewhere = version > 0 and data[at : at + 2] != b"\0\0"  # constructed, not in the file
        at += 4 if version else 2  # the construction, and which file
        base, at = _number(data, at, base_size)
        (extents,) = struct.unpack_from(">H", data, at)
        at += 2
        if number == wanted:
            if extents != 1 or is_elsewhere:
                return b""
            offset, at = _number(data, at + extent_size - offset_size - length_size, offset_size)
            length, at = _number(data, at, length_size)
            return data[base + offset : base + offset + length]
        at += extents * extent_size
    return b""


def _number(data: bytes, at: int, size: int) -> tuple[int, int]:
    """An unsigned number of so many bytes, and where what follows it begins."""
    if at + size > len(data):
        raise ValueError("cut short")
    return int.from_bytes(data[at : at + size], "big"), at + size
