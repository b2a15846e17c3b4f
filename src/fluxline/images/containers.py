"""Where text lives inside PNG, JPEG, WebP and AVIF files: as chunks and EXIF, found again.

Knows nothing of what the text says. Finding it never decodes a pixel and never inflates more
than `MAX_TEXT_BYTES`, so a hostile file costs no more than its own length.
"""

import struct
import zlib

from isal import isal_zlib

from fluxline.errors import InvalidParams, UnsupportedFormat
from fluxline.images.boxes import AVIF_START, find_item
from fluxline.request import ImageFormat

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 1 << 20
JPEG_EXIF_LIMIT = 65533
"""Bytes: what one JPEG segment holds beside its length."""

_EXIF_HEADER = b"Exif\0\0"
_EXIF_POINTER, _MAKER_NOTE, _USER_COMMENT = 0x8769, 0x927C, 0x9286
_LONG, _UNDEFINED = 4, 7  # TIFF field types
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, _LONG: 4, _UNDEFINED: 1}


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Frame one PNG chunk: length, kind (4 letters), body, CRC-32."""
    crc = isal_zlib.crc32(body, isal_zlib.crc32(kind))
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png_text(keyword: str, text: str) -> bytes:
    """Frame `text` as a tEXt chunk where Latin-1 can say it, else as an uncompressed iTXt.

    `keyword` is 1 to 79 Latin-1 characters. What neither chunk may hold is replaced: a NUL by
    U+FFFD, half a surrogate pair by a question mark.
    """
    key = keyword.encode("latin-1")
    clean = text.replace("\0", "\ufffd")
    try:
        return png_chunk(b"tEXt", key + b"\0" + clean.encode("latin-1"))
    except UnicodeEncodeError:
        return png_international_text(keyword, clean)


def png_international_text(keyword: str, text: str) -> bytes:
    """Frame `text`, which has no NUL, as an uncompressed iTXt chunk, as XMP must stand."""
    key = keyword.encode("latin-1")
    return png_chunk(b"iTXt", key + b"\0\0\0\0\0" + text.encode("utf-8", "replace"))


def exif(comment: str, keyword: str, note: str) -> bytes:
    """Build an EXIF block: `comment` as UserComment for everybody, `note` as our MakerNote.

    `note` is ASCII; `keyword` marks it as ours. Big-endian throughout, because readers disagree
    whether UserComment follows the block's byte order or is always big-endian: so both are right.
    """
    fields = {
        _MAKER_NOTE: keyword.encode("ascii") + b"\0" + note.encode("ascii"),
        _USER_COMMENT: b"UNICODE\0" + comment.encode("utf-16-be", "replace"),
    }
    # An IFD is a count, 12 bytes per field, and the offset of the next IFD (0: none).
    first_at, second_at = 8, 8 + 2 + 12 + 4
    values_at = second_at + 2 + 12 * len(fields) + 4
    entries, values = b"", b""
    for tag, value in fields.items():
        entries += struct.pack(">HHII", tag, _UNDEFINED, len(value), values_at + len(values))
        values += value + b"\0" * (len(value) % 2)
    first = struct.pack(">HHHIII", 1, _EXIF_POINTER, _LONG, 1, second_at, 0)
    second = struct.pack(">H", len(fields)) + entries + struct.pack(">I", 0)
    return _EXIF_HEADER + b"MM\0\x2a" + struct.pack(">I", first_at) + first + second + values


def find_text(data: bytes, keyword: str) -> str | None:
    """Find the text an image file carries under `keyword`; None where it carries none.

    In a PNG a text chunk before the pixels, in the others the MakerNote of `exif`. Raises
    UnsupportedFormat for any other file, InvalidParams for a broken one or for a text above
    MAX_TEXT_BYTES.
    """
    key, format = keyword.encode("latin-1") + b"\0", format_of(data)
    try:
        if format == "png":
            return _png_find(data, key)
        exif_of = {"jpeg": _jpeg_exif, "webp": _webp_exif, "avif": _avif_exif}[format]
        return _exif_find(exif_of(data), key)
    except (struct.error, zlib.error, UnicodeDecodeError, ValueError) as exc:
        raise InvalidParams(
            "image must be a whole file; its structure is broken", field="image"
        ) from exc


def format_of(data: bytes) -> ImageFormat:
    """Tell the format of an image file by its first bytes. Raises UnsupportedFormat."""
    if data.startswith(PNG_SIGNATURE):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(AVIF_START, 4):
        return "avif"
    raise UnsupportedFormat("image must be a PNG, JPEG, WebP or AVIF file; got something else")


def _png_find(data: bytes, key: bytes) -> str | None:
    at = len(PNG_SIGNATURE)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"IDAT", b"IEND"):
            return None
        if kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith(key, at + 8):
            body = data[at + 8 : at + 8 + length]
            (crc,) = struct.unpack_from(">I", data, at + 8 + length)
            if crc != isal_zlib.crc32(body, isal_zlib.crc32(kind)):
                raise ValueError("checksum")
            return _png_text_of(kind, body[len(key) :])
        at += 12 + length


def _png_text_of(kind: bytes, body: bytes) -> str:
    """The text of a chunk's body after its keyword; other programs may have compressed it."""
    if kind == b"tEXt":
        return _bounded(body).decode("latin-1")
    if kind == b"zTXt":
        return _inflated(body[1:]).decode("latin-1")
    is_compressed = body[:1] == b"\1"
    _language, _translated, text = body[2:].split(b"\0", 2)
    return (_inflated(text) if is_compressed else _bounded(text)).decode("utf-8")


def _jpeg_exif(data: bytes) -> bytes:
    at = 2
    while True:
        fill, marker, length = struct.unpack_from(">BBH", data, at)
        if fill != 0xFF:
            raise ValueError("marker")
        if marker in (0xDA, 0xD9):  # the pixels begin, or the file ends
            return b""
        if marker == 0xE1 and data.startswith(_EXIF_HEADER, at + 4):
            return data[at + 4 + len(_EXIF_HEADER) : at + 2 + length]
        at += 2 + length


def _webp_exif(data: bytes) -> bytes:
    at = 12
    while at < len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return data[at + 8 : at + 8 + length].removeprefix(_EXIF_HEADER)
        at += 8 + length + length % 2
    return b""


def _avif_exif(data: bytes) -> bytes:
    if not (item := find_item(data, b"Exif")):
        return b""
    (header_bytes,) = struct.unpack_from(">I", item)
    return item[4 + header_bytes :]


def _exif_find(tiff: bytes, key: bytes) -> str | None:
    if not tiff:
        return None
    order = {b"MM": ">", b"II": "<"}.get(tiff[:2])
    if order is None:
        raise ValueError("byte order")
    (first_at,) = struct.unpack_from(order + "I", tiff, 4)
    pointer = _tiff_fields(tiff, first_at, order).get(_EXIF_POINTER)
    if pointer is None:
        return None
    (second_at,) = struct.unpack(order + "I", pointer)
    note = _tiff_fields(tiff, second_at, order).get(_MAKER_NOTE, b"")
    return _bounded(note[len(key) :]).decode("ascii") if note.startswith(key) else None


def _tiff_fields(tiff: bytes, at: int, order: str) -> dict[int, bytes]:
    """The raw values of one IFD, by tag."""
    (count,) = struct.unpack_from(order + "H", tiff, at)
    fields = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", tiff, entry)
        size = number * _TYPE_BYTES.get(kind, 0)
        value_at = entry + 8 if size <= 4 else struct.unpack_from(order + "I", tiff, entry + 8)[0]
        if tag in (_EXIF_POINTER, _MAKER_NOTE) and tag not in fields:
            fields[tag] = tiff[value_at : value_at + size]
    return fields


def _inflated(packed: bytes) -> bytes:
    return _bounded(zlib.decompressobj().decompress(packed, MAX_TEXT_BYTES + 1))


def _bounded(text: bytes) -> bytes:
    if len(text) > MAX_TEXT_BYTES:
        message = f"image carries more text than the {MAX_TEXT_BYTES} bytes that are read"
        raise InvalidParams(message, field="image")
    return text
