"""Fetch the two emoji sets from npm and render the chosen things as one sprite array.

The packages are pinned by version and sha512. The result is `sprites.npz`: straight (not
premultiplied) RGBA, `(things, styles, 256, 256, 4)` uint8, in the order of `things.THINGS` and
`things.STYLES`. The pictures themselves are never committed.

    python -m training.fetch --data /path/to/data
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from training.things import STYLES, THINGS, Thing

SPRITE_PX = 256

# name, version -> npm's `dist.integrity`. Licences: Apache-2.0 (Noto), MIT (Fluent, LobeHub).
PACKAGES = {
    "noto": (
        "@iconify-json/noto@1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYe"
        "ZVAuaw==",
    ),
    "3d": (
        "@lobehub/fluent-emoji-3d@1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lU"
        "AG3h7g==",
    ),
}


def download(package: str, integrity: str, folder: Path) -> Path:
    """Return the tarball of an npm package, downloading it when absent; check its sha512."""
    name, _, version = package.rpartition("@")
    tarball = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not tarball.exists():
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
    digest = hashlib.sha512(tarball.read_bytes()).digest()
    found = "sha512-" + base64.b64encode(digest).decode()
    if found != integrity:
        raise ValueError(f"{tarball.name} is not the pinned package: {found}")
    return tarball


def noto_sprites(tarball: Path) -> list[Image.Image]:
    """Render every thing from Noto's SVG set."""
    with tarfile.open(tarball) as tar:
        icons = json.load(_member(tar, "package/icons.json"))
        names = json.load(_member(tar, "package/chars.json"))
    default = (icons.get("width", 16), icons.get("height", 16))
    sprites = []
    for thing in THINGS:
        icon = icons["icons"][names[_plain(thing)]]
        width, height = icon.get("width", default[0]), icon.get("height", default[1])
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE_PX, height=SPRITE_PX)
        sprites.append(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    return sprites


def fluent_sprites(tarball: Path) -> list[Image.Image]:
    """Read every thing from the Fluent 3D WebP set."""
    with tarfile.open(tarball) as tar:
        files = {Path(m.name).stem.replace("-fe0f", ""): m for m in tar if m.name.endswith("webp")}
        sprites = []
        for thing in THINGS:
            handle = tar.extractfile(files[_plain(thing)])
            assert handle is not None
            sprites.append(Image.open(io.BytesIO(handle.read())).convert("RGBA"))
    return sprites


def fitted(sprite: Image.Image) -> Image.Image:
    """Crop a sprite to its opaque box and centre it in a square with a thin margin."""
    box = sprite.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    cropped = sprite.crop(box)
    scale = 0.98 * SPRITE_PX / max(cropped.size)
    size = (round(cropped.width * scale), round(cropped.height * scale))
    # Pillow premultiplies inside resize: doing it here as well would leave white halos.
    cropped = cropped.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SPRITE_PX, SPRITE_PX))
    square.paste(cropped, ((SPRITE_PX - size[0]) // 2, (SPRITE_PX - size[1]) // 2))
    return square


def _plain(thing: Thing) -> str:
    return thing.code.replace("-fe0f", "")


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
    tarballs = {style: download(*PACKAGES[style], folder) for style in STYLES}
    columns = [noto_sprites(tarballs["noto"]), fluent_sprites(tarballs["3d"])]
    sprites = np.stack(
        [np.stack([np.asarray(fitted(s)) for s in row]) for row in zip(*columns, strict=True)]
    )
    np.savez_compressed(folder / "sprites.npz", sprites=sprites)
    print(f"{sprites.shape[0]} things x {sprites.shape[1]} styles -> {folder / 'sprites.npz'}")


if __name__ == "__main__":
    main()
