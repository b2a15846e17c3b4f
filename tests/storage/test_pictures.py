"""Stores: what was put comes back, names are never paths, old pictures go."""

import asyncio
import hashlib
import os
import time
from typing import get_args

import pytest

from fluxline.errors import ConfigError, StorageError
from fluxline.request import ImageFormat
from fluxline.storage import open_pictures

PNG, OTHER = b"\x89PNG one", b"\x89PNG another"


@pytest.fixture(params=["memory:", "folder"])
def pictures(request, tmp_path):
    return open_pictures(str(tmp_path / "p") if request.param == "folder" else request.param)


async def test_a_picture_comes_back_by_its_key(pictures):
    stored = await pictures.put(PNG, "png")
    digest = hashlib.sha256(PNG).hexdigest()
    assert (stored.sha256, stored.size) == (digest, len(PNG))
    assert stored.key == f"{digest[:2]}/{digest}.png"
    assert await pictures.get(stored.key) == PNG


@pytest.mark.parametrize("format", get_args(ImageFormat))
async def test_every_format_has_a_key_that_leads_back(pictures, format):
    assert await pictures.get((await pictures.put(PNG, format)).key) == PNG


async def test_equal_pictures_are_stored_once(pictures):
    assert await pictures.put(PNG, "png") == await pictures.put(PNG, "png")
    assert len(await pictures.sweep(max_age_s=None, max_bytes=0)) == 1


async def test_what_is_not_there_is_none_and_may_be_deleted(pictures):
    stored = await pictures.put(PNG, "webp")
    await pictures.delete(stored.key)
    await pictures.delete(stored.key)
    assert await pictures.get(stored.key) is None


@pytest.mark.parametrize(
    "key", ["../secret", "/etc/passwd", "", "aa/../../x.png", "aa\x00", "ab/" + "a" * 64, "é"]
)
async def test_a_key_that_is_none_of_ours_is_not_looked_for(pictures, key):
    assert await pictures.get(key) is None


async def test_many_pictures_at_once_all_come_back(pictures):
    data = [b"%d" % k * 1000 for k in range(40)]
    stored = await asyncio.gather(*(pictures.put(d, "jpeg") for d in data))
    assert await asyncio.gather(*(pictures.get(s.key) for s in stored)) == data


async def test_a_folder_gives_no_link_of_its_own(pictures):
    assert await pictures.link((await pictures.put(PNG, "png")).key) is None


async def test_a_public_address_is_the_link():
    pictures = open_pictures("memory:", public_url="https://pictures.example/")
    stored = await pictures.put(PNG, "png")
    assert await pictures.link(stored.key) == f"https://pictures.example/{stored.key}"


async def test_sweeping_takes_the_old_and_then_the_oldest(tmp_path):
    pictures = open_pictures(str(tmp_path))
    old, middle, new = [await pictures.put(b"%d" % k * 100, "png") for k in range(3)]
    for stored, age_s in ((old, 1000), (middle, 100)):
        then = time.time() - age_s
        os.utime(tmp_path / stored.key, (then, then))
    assert await pictures.sweep(max_age_s=500, max_bytes=None) == [old.key]
    assert await pictures.sweep(max_age_s=500, max_bytes=150) == [middle.key]
    assert await pictures.get(new.key) is not None


async def test_sweeping_leaves_files_that_are_not_ours(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    assert await open_pictures(str(tmp_path)).sweep(max_age_s=0, max_bytes=0) == []
    assert (tmp_path / "note.txt").exists()


async def test_a_store_that_fails_says_so_without_its_path(tmp_path):
    folder = tmp_path / "p"
    pictures = open_pictures(str(folder))
    folder.rmdir()
    folder.write_text("in the way")
    with pytest.raises(StorageError) as caught:
        await pictures.put(PNG, "png")
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("url", ["ftp://x", "s3://b?secret=x"])
def test_a_wrong_address_is_refused(url):
    with pytest.raises(ConfigError):
        open_pictures(url)
