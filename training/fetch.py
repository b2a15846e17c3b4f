"""Fetch the emoji sets and faces from npm and render them as sprites.

The result is `sprites.zip`: lossless WebP of 256 x 256 px with straight (not premultiplied) alpha,
`<code>/<style>.webp` for every thing in every style that has it; and `faces.npy`, whose faces need
Node. The pictures are never committed.

    python -m training.fetch --data /path/to/data
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from training import faces, packages
from training.things import STYLES, THINGS

SPRITE_PX, FACE_PX = 256, 16

_FACES_BY_NODE = """
import {createAvatar} from '@dicebear/core';
import * as style from '@dicebear/pixel-art';
import {readFileSync} from 'node:fs';
const faces = JSON.parse(readFileSync(0, 'utf8'));
console.log(JSON.stringify(faces.map(face => createAvatar(style, face).toString())));
"""

Draw = Callable[[str], Image.Image | None]
"""From a thing's code points to its picture in one style; None where the style lacks it."""


def drawn_from_svg(tarball: Path) -> Draw:
    """Render from an Iconify package."""
    with tarfile.open(tarball) as tar:
        icons = json.load(_member(tar, "package/icons.json"))
        names = json.load(_member(tar, "package/chars.json"))

    def draw(code: str) -> Image.Image | None:
        icon = icons["icons"].get(names.get(code, ""))
        return None if icon is None else _rendered(icon, icons)

    return draw


def drawn_from_webp(tarball: Path) -> Draw:
    """Read from the Fluent 3D package."""
    with tarfile.open(tarball) as tar:
        files = {
            Path(member.name).stem.replace("-fe0f", ""): _member(tar, member.name).read()
            for member in tar
            if member.name.endswith("webp")
        }

    def draw(code: str) -> Image.Image | None:
        data = files.get(code)
        return None if data is None else Image.open(io.BytesIO(data)).convert("RGBA")

    return draw


def faces_drawn(folder: Path) -> np.ndarray:
    """Return all faces as straight RGBA `(N, 16, 16, 4)`, drawn by Node in a folder."""
    for name, package in packages.FACES.items():
        target = folder / "node_modules" / "@dicebear" / name
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(package.tarball(folder)) as tar:
            for member in tar:
                member.name = member.name.removeprefix("package/")
                tar.extract(member, target, filter="data")
    script = folder / "faces.mjs"
    script.write_text(_FACES_BY_NODE)
    told = json.dumps([faces.options(k, face) for k, face in enumerate(faces.FACES)])
    answer = subprocess.run(
        ["node", script.name], cwd=folder, input=told, capture_output=True, text=True, check=True
    )
    return np.stack([np.array(_image(svg, FACE_PX)) for svg in json.loads(answer.stdout)])


def fitted(sprite: Image.Image) -> Image.Image:
    """Crop a sprite to its opaque box and centre it in a square with a thin margin."""
    box = sprite.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    cropped = sprite.crop(box)
    scale = 0.98 * SPRITE_PX / max(cropped.size)
    size = (max(1, round(cropped.width * scale)), max(1, round(cropped.height * scale)))
    # Pillow premultiplies inside resize: doing it here as well would leave white halos.
    cropped = cropped.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SPRITE_PX, SPRITE_PX))
    square.paste(cropped, ((SPRITE_PX - size[0]) // 2, (SPRITE_PX - size[1]) // 2))
    return square


def _rendered(icon: dict[str, Any], icons: dict[str, Any]) -> Image.Image:
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )
    return _image(svg, SPRITE_PX)


def _image(svg: str, side: int) -> Image.Image:
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _member(tar: tarfile.TarFile, name: str) -> io.BufferedReader:
    handle = tar.extractfile(name)
    if not isinstance(handle, io.BufferedReader):
        raise FileNotFoundError(name)
    return handle


def main() -> None:
    """Download, check, render, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "faces.npy", faces_drawn(folder))
    tarballs = {style: packages.SPRITES[style].tarball(folder) for style in STYLES}
    makers = {s: drawn_from_webp if s == "3d" else drawn_from_svg for s in STYLES}
    draws = {style: makers[style](tarballs[style]) for style in STYLES}
    count = 0
    with zipfile.ZipFile(folder / "sprites.part", "w", zipfile.ZIP_STORED) as archive:
        for thing in THINGS:
            for style, draw in draws.items():
                if (sprite := draw(thing.code)) is not None:
                    file = io.BytesIO()
                    fitted(sprite).save(file, "webp", lossless=True, exact=True)
                    archive.writestr(f"{thing.code}/{style}.webp", file.getvalue())
                    count += 1
    (folder / "sprites.part").replace(folder / "sprites.zip")
    print(f"{count} sprites of {len(THINGS)} things -> {folder / 'sprites.zip'}")


if __name__ == "__main__":
    main()
