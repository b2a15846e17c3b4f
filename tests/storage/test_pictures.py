"""Stores: what was put comes back, names are never paths, old pictures go."""

import asyncio
import contextlib
import hashlib
import os
import time
import uuid
from typing import get_args

import httpx
import pytest

from fluxline.errors import ConfigError, StorageError
from fluxline.request import ImageFormat
from fluxline.storage import open_pictures
from tests.seaweed import BUCKET, KEYS, OPEN

PNG, OTHER = b"\x89PNG one", b"\x89PNG another"


@pytest.fixture
def s3(seaweed, monkeypatch):
    """Make the address of a place of its own in a bucket of a real S3."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    prefix = uuid.uuid4().hex
    return lambda bucket=BUCKET: seaweed.url(prefix, bucket)


@pytest.fixture(params=["memory:", "folder", pytest.param("s3", marks=pytest.mark.slow)])
def pictures(request, tmp_path):
    if request.param == "s3":
        return open_pictures(request.getfixturevalue("s3")())
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


@pytest.mark.parametrize("place", ["memory:", "folder"])
async def test_a_folder_gives_no_link_of_its_own(place, tmp_path):
    pictures = open_pictures(place if place == "memory:" else str(tmp_path))
    assert await pictures.link((await pictures.put(PNG, "png")).key) is None


async def test_a_store_that_takes_pictures_is_tried_out_and_nothing_is_left_of_it(pictures):
    stored = await pictures.put(PNG, "png")
    await pictures.try_out()
    assert await pictures.sweep(max_age_s=None, max_bytes=0) == [stored.key]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_whoever_has_a_signed_link_reads_the_picture_as_what_it_is(kind, s3):
    pictures = open_pictures(s3(), link_s=60)
    link = await pictures.link((await pictures.put(PNG, kind)).key)
    answer = httpx.get(link)
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"] == f"image/{kind}"


@pytest.mark.slow
async def test_a_signed_link_is_good_for_its_picture_and_its_time_alone(s3):
    pictures = open_pictures(s3(), link_s=1)
    one, other = await pictures.put(PNG, "png"), await pictures.put(OTHER, "png")
    link = await pictures.link(one.key)
    assert httpx.get(link.replace(one.key, other.key)).status_code == 403
    assert httpx.get(link.partition("?")[0]).status_code == 403
    await asyncio.sleep(2.1)
    assert httpx.get(link).status_code == 403


@pytest.mark.slow
async def test_a_public_bucket_is_read_at_its_public_address(s3):
    address, _, endpoint = s3(OPEN).removeprefix("s3:/").partition("?endpoint=")
    pictures = open_pictures(s3(OPEN), public_url=endpoint + address)
    link = await pictures.link((await pictures.put(PNG, "webp")).key)
    answer = httpx.get(link)
    assert (answer.status_code, answer.content, "?" in link) == (200, PNG, False)


@pytest.mark.slow
async def test_places_in_one_bucket_do_not_touch_each_other(seaweed, s3):
    mine, other = open_pictures(s3()), open_pictures(f"s3://{BUCKET}?endpoint={seaweed.endpoint}")
    stored = await mine.put(PNG, "png")
    assert await other.get(stored.key) is None
    beside = await other.put(OTHER, "png")
    assert await mine.sweep(max_age_s=None, max_bytes=0) == [stored.key]
    assert await other.get(beside.key) == OTHER
    await other.delete(beside.key)


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


@pytest.mark.slow
async def test_sweeping_s3_takes_the_old_and_then_the_oldest(s3):
    pictures = open_pictures(s3())
    old = await pictures.put(b"0" * 100, "png")
    await asyncio.sleep(6.5)
    middle = await pictures.put(b"1" * 100, "png")
    await asyncio.sleep(1.1)  # its clock counts seconds
    new = await pictures.put(b"2" * 100, "png")
    assert await pictures.sweep(max_age_s=7, max_bytes=None) == [old.key]
    assert await pictures.sweep(max_age_s=3600, max_bytes=150) == [middle.key]
    assert await pictures.get(new.key) is not None
    assert await pictures.get(old.key) is None


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


@pytest.mark.slow
async def test_a_bucket_that_is_not_there_is_known_at_the_start(s3):
    pictures = open_pictures(s3("absent"))
    with pytest.raises(ConfigError, match="bucket and credentials: it says NoSuchBucket"):
        await pictures.try_out()
    with pytest.raises(StorageError, match="could not be stored: it says NoSuchBucket"):
        await pictures.put(PNG, "png")
    with pytest.raises(StorageError, match="could not be listed: it says NoSuchBucket"):
        await pictures.sweep(max_age_s=1, max_bytes=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"),
    ],
)
async def test_wrong_credentials_are_known_at_the_start(name, said, s3, monkeypatch):
    monkeypatch.setenv(name, "wrong")
    pictures = open_pictures(s3())
    with pytest.raises(ConfigError, match=f"it says {said}"):
        await pictures.try_out()
    for act in (pictures.get(f"aa/{'a' * 64}.png"), pictures.put(PNG, "png")):
        with pytest.raises(StorageError, match=f"it says {said}") as caught:
            await act
        assert "wrong" not in caught.value.message


@pytest.mark.slow
async def test_a_store_that_is_down_is_said_within_seconds_and_what_was_stored_is_there_again(
    seaweed, s3
):
    pictures = open_pictures(s3())
    stored = await pictures.put(PNG, "png")
    seaweed.kill()
    began = time.monotonic()
    try:
        with pytest.raises(StorageError, match="does not answer"):
            await pictures.try_out()
        for act in (pictures.get(stored.key), pictures.put(OTHER, "png")):
            with pytest.raises(StorageError) as caught:
                await act
            assert seaweed.endpoint not in caught.value.message
        assert time.monotonic() - began < 20
    finally:
        seaweed.start()
    async with asyncio.timeout(30):
        while True:  # it answers before its volumes are mounted
            with contextlib.suppress(StorageError):
                assert await pictures.get(stored.key) == PNG
                break
            await asyncio.sleep(0.2)
    assert (await pictures.put(OTHER, "png")).size == len(OTHER)
