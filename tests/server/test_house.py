"""What an operator sets reaches what it is about."""

import contextlib

import httpx
import pytest

from fluxline.errors import InvalidParams
from fluxline.fleet.process import ENGINE
from fluxline.images import encode
from fluxline.request import GenerationRequest
from fluxline.server.house import build, prepare
from fluxline.server.uploads import Found, Part
from fluxline.settings import load_settings
from tests.images.pictures import noise
from tests.worker.fake_engine import INFO

FILE = encode(noise(8, 8), format="png")


@pytest.fixture
async def built(tmp_path):
    """Build a server with these settings; nothing of it works yet."""
    with contextlib.ExitStack() as stack:
        houses = []

        def make(**settings):
            given = load_settings({"port": 0, "data": tmp_path, **settings})
            houses.append(build(given, prepare(given, stack), ENGINE))
            return houses[-1]

        yield make
        for house in houses:
            await house.uploads.close()


async def answered(house, content):
    transport = httpx.ASGITransport(house.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.post("/v1/images/edits", content=content)


async def test_upload_limit_bytes_bounds_a_body_with_a_picture(built):
    house = built(upload_limit_bytes=5000)
    assert (await answered(house, b" " * 5001)).status_code == 413
    assert (await answered(house, b" " * 5000)).status_code != 413


async def test_image_hosts_names_where_pictures_are_fetched(built, listener):
    house = built(image_hosts="127.0.0.1")
    listener.answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(FILE) + FILE
    asked = GenerationRequest(id="r", prompt="a fox", seed=1)
    here = Found(image=Part(f"http://127.0.0.1:{listener.port}/", "image"))
    started, _ = await house.uploads.begin(here, asked, INFO)
    assert started.source
    with pytest.raises(InvalidParams, match="may not lead to"):
        await house.uploads.begin(Found(image=Part("https://example.com/", "image")), asked, INFO)


@pytest.mark.parametrize(("stuck_s", "patience"), [(30.0, 30.0), (0.0, None)])
async def test_stuck_s_is_the_patience_with_a_worker(stuck_s, patience, built):
    [pool] = [one._inner for one in built(stuck_s=stuck_s).router]
    [replica] = pool._members
    assert replica._patience.stuck_s == patience


async def test_workers_are_told_the_precision(built):
    [pool] = [one._inner for one in built(precision="nf4").router]
    [replica] = pool._members
    assert "--precision=nf4" in replica._command.argv(fd=3)
