"""Where the pictures come from: npm packages pinned by version and sha512, with their licences."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One npm package and whom to thank for it."""

    name: str  # name@version
    integrity: str  # npm's dist.integrity
    licence: str
    credit: str

    def tarball(self, folder: Path) -> Path:
        """Return the package's file, downloading it when absent; check its sha512."""
        name, _, version = self.name.rpartition("@")
        path = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
        if not path.exists():
            subprocess.run(["npm", "pack", "--silent", self.name], cwd=folder, check=True)
        found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        if f"sha512-{found}" != self.integrity:
            raise ValueError(f"{path.name} is not the pinned package: sha512-{found}")
        return path


SPRITES = {  # style -> package
    "noto": Package(
        name="@iconify-json/noto@1.2.9",
        integrity="sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rc"
        "KF0mqHYeZVAuaw==",
        licence="Apache-2.0",
        credit="Noto Emoji, Copyright Google Inc.",
    ),
    "3d": Package(
        name="@lobehub/fluent-emoji-3d@1.1.0",
        integrity="sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5"
        "wRBv60lUAG3h7g==",
        licence="MIT",
        credit="Fluent Emoji, Copyright Microsoft Corporation; packaged by LobeHub",
    ),
    "flat": Package(
        name="@iconify-json/fluent-emoji-flat@1.2.6",
        integrity="sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYv"
        "uaSYM1M4fRXlUw==",
        licence="MIT",
        credit="Fluent Emoji, Copyright Microsoft Corporation",
    ),
    "blob": Package(
        name="@iconify-json/noto-v1@1.2.5",
        integrity="sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw"
        "+1L1x3eyPqMuVA==",
        licence="Apache-2.0",
        credit="Noto Emoji (version 1), Copyright Google Inc.",
    ),
}

FACES = {  # what Node draws pixel-art faces with
    "core": Package(
        name="@dicebear/core@9.4.3",
        integrity="sha512-9ITrQI57k3p5hKuU8HZJ1d0kPdrmTKEJDOdlKQ8CpaChbtmnD1R+dtWmNz5IesYThXM8F64p"
        "J0ZvJ2rsY8Hciw==",
        licence="MIT",
        credit="DiceBear, Copyright Florian Körner (code only)",
    ),
    "pixel-art": Package(
        name="@dicebear/pixel-art@9.4.3",
        integrity="sha512-sGoG6MEs9ZWD+5+7OObVjp7IrF3E/UEKTg7T4kou9UXl2YXLVy8u8hHnAgTqWhiVZuyYozAV"
        "sK2E/oYvMigYBw==",
        licence="CC0-1.0",
        credit="Pixel Art by DiceBear",
    ),
}
