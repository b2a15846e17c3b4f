"""Pictures in bodies: found whatever the form, fetched only where that is allowed, made to fit."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fluxline.errors import InvalidParams, QueueFull
from fluxline.images import decode, encode
from fluxline.request import GenerationRequest, SamplingParams
from fluxline.server import uploads as room
from fluxline.server.fields import Fields, FormFields, MalformedBody, UnsupportedParam
from fluxline.server.middleware import TAKE_PICTURES
from fluxline.server.outside import Outside
from fluxline.server.uploads import Uploads, find
from tests.images.pictures import noise
from tests.worker.fake_engine import INFO

PIXELS = noise(8, 4)
FILE = encode(PIXELS, format="png")
TEXT = base64.b64encode(FILE).decode()


def request(**params):
    return GenerationRequest(id="r", prompt="a fox", seed=1, params=SamplingParams(**params))


async def begun(uploads, body, **params):
    found = find(Fields(body))
    assert found is not None
    return await uploads.begin(found, request(**params), INFO)


@pytest.mark.parametrize(
    "body",
    [
        {"image": TEXT},
        {"image": [TEXT]},
        {"image": TEXT[:40] + "\r\n" + TEXT[40:]},
        {"image": f"data:image/png;base64,{TEXT}"},
        {"image": f"data:;base64,{TEXT}"},
        {"images": [{"image_url": f"data:image/png;base64,{TEXT}"}]},
        {"images": [{"image_url": {"url": f"data:image/png;base64,{TEXT}"}}]},
        {"ref_images": [TEXT]},
        {"image": FILE},
    ],
)
async def test_a_picture_is_found_however_it_is_sent(body, uploads):
    started, told = await begun(uploads, body, width=8, height=4)
    assert np.array_equal(decode(started.source), PIXELS)
    assert told == []


@pytest.mark.parametrize("body", [{}, {"image": None}, {"image": ""}, {"images": []}])
def test_where_there_is_none_there_is_none(body):
    assert find(Fields(body)) is None


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"image": 7}, InvalidParams, "image must be a picture"),
        ({"image": {}}, InvalidParams, "image must be a picture"),
        ({"image": "no base64!"}, InvalidParams, "image must be a picture as base64"),
        ({"image": "ünïcode"}, InvalidParams, "image must be a picture as base64"),
        ({"image": "data:image/png;base64,"}, InvalidParams, "must be a whole PNG"),
        ({"image": "data:text/html,<b>"}, InvalidParams, "image must be a picture as base64"),
        ({"image": "aGVsbG8="}, InvalidParams, "image must be a whole PNG"),
        ({"ref_images": ["aGVsbG8="]}, InvalidParams, "ref_images: image must be a whole PNG"),
        ({"image": [TEXT, TEXT]}, UnsupportedParam, "image: fake takes one picture; got 2"),
        ({"images": [{"file_id": "file-1"}]}, UnsupportedParam, "file_id is not served"),
        ({"image": TEXT, "images": FILE}, InvalidParams, "image and images mean the same"),
        ({"image": "https://example.com/a.png"}, InvalidParams, "--image-hosts"),
        ({"images": [{"image_url": "http://[::1]/"}]}, InvalidParams, "--image-hosts"),
    ],
)
async def test_what_is_wrong_is_said_by_the_name_that_was_used(body, kind, words, uploads):
    with pytest.raises(kind) as caught:
        await begun(uploads, body)
    assert words in caught.value.message
    assert caught.value.field in body


@pytest.fixture
def fetching(reader):
    return Uploads(Outside("127.0.0.1"), reader, most_bytes=10_000)


async def test_a_picture_is_fetched_where_the_operator_allows_it(fetching, listener):
    listener.answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(FILE) + FILE
    body = {"image": f"http://127.0.0.1:{listener.port}/a.png"}
    started, _ = await begun(fetching, body, width=8, height=4)
    assert np.array_equal(decode(started.source), PIXELS)
    with pytest.raises(InvalidParams, match=r"may not lead to example\.com"):
        await begun(fetching, {"image": "https://example.com/a.png"})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", "answered 404"),
        (b"HTTP/1.1 302 F\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n", "302"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2**20, "has more than 10000 bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntext", "must be a whole PNG"),
    ],
)  # fmt: skip
async def test_what_is_fetched_and_is_no_picture_is_refused(answer, words, fetching, listener):
    listener.answer = answer
    with pytest.raises(InvalidParams) as caught:
        await begun(fetching, {"image": f"http://127.0.0.1:{listener.port}/"})
    assert words in caught.value.message


@pytest.mark.parametrize("name", ["a..b", f"{'x' * 64}.example"])
async def test_a_name_that_is_none_is_refused(name, reader):
    uploads = Uploads(Outside("*"), reader, most_bytes=10_000)
    with pytest.raises(InvalidParams):
        await begun(uploads, {"image": f"https://{name}/a.png"})


async def test_the_size_follows_the_picture_unless_it_is_asked(uploads):
    wide = {"image": encode(noise(200, 100), format="png")}
    for asked, becomes in (
        ({}, (96, 48)),
        ({"width": 50}, (50, 32)),
        ({"height": 100}, (192, 100)),
        ({"width": 100, "height": 80}, (100, 80)),
    ):
        started, _ = await begun(uploads, wide, **asked)
        assert (started.params.width, started.params.height) == becomes


async def test_what_falls_away_is_said_when_it_is_much(uploads):
    wide = {"image": encode(noise(200, 100), format="png")}
    assert (await begun(uploads, wide, width=96, height=48))[1] == []
    assert "its middle is used" in (await begun(uploads, wide, width=64, height=64))[1][0]


async def test_nothing_that_a_file_says_beside_its_pixels_goes_further(uploads):
    where, said, file = Image.Exif(), PngInfo(), io.BytesIO()
    where[0x010F] = "Camera of Ann"
    said.add_text("Comment", "drawn at home")
    Image.fromarray(noise(64, 64)).save(file, "PNG", exif=where, pnginfo=said)
    assert b"Camera of Ann" in file.getvalue()

    started, _ = await begun(uploads, {"image": file.getvalue()}, width=64, height=64)
    with Image.open(io.BytesIO(started.source)) as picture:
        assert (dict(picture.getexif()), picture.info) == ({}, {})
    assert np.array_equal(decode(started.source), noise(64, 64))


async def test_no_more_wait_than_may(uploads, monkeypatch):
    monkeypatch.setattr(room, "MOST_WAITING", 2)
    asked = [begun(uploads, {"image": FILE}) for _ in range(4)]
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(end, QueueFull) for end in ends] == [False, False, True, True]
    await begun(uploads, {"image": FILE})


async def test_who_leaves_gives_up_the_place(uploads, monkeypatch):
    monkeypatch.setattr(room, "MOST_WAITING", 1)
    asked = asyncio.create_task(begun(uploads, {"image": FILE}))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    started, _ = await begun(uploads, {"image": FILE}, width=8, height=4)
    assert np.array_equal(decode(started.source), PIXELS)


def test_a_part_of_a_form_is_not_given_twice():
    with pytest.raises(MalformedBody, match="has prompt twice"):
        FormFields([("prompt", "a"), ("prompt", "b")])


def test_a_form_says_numbers_and_truths_as_text():
    form = FormFields(
        [("n", "2"), ("guidance", " 1.5 "), ("stream", "TRUE"), ("prompt", "12"), ("user", "")]
    )
    assert form.integer("n", low=1, high=4) == 2
    assert form.number("guidance", low=0, high=9) == 1.5
    assert form.boolean("stream") is True
    assert form.text("prompt") == "12"
    assert not form.given("user")


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda form: form.integer("n", low=1, high=4), "n must be an integer from 1 to 4"),
        (lambda form: form.number("n", low=1, high=4), "n must be a number from 1 to 4"),
        (lambda form: form.boolean("n"), "n must be true or false"),
        (lambda form: form.text("file"), "file must be a string; got a file"),
    ],
)
def test_a_part_that_stands_for_nothing_of_the_kind_is_refused_by_name(read, words):
    with pytest.raises(InvalidParams, match=words):
        read(FormFields([("n", "many"), ("file", b"...")]))


def test_a_form_says_lists_in_brackets():
    form = FormFields([("image[]", b"a"), ("image[]", b"b"), ("loras[][id]", "x")])
    assert form.value("image") == [b"a", b"b"]
    assert form.value("loras") == ["x"]
    assert FormFields([("image", b"a"), ("image", b"b")]).value("image") == [b"a", b"b"]


@pytest.mark.parametrize("path", TAKE_PICTURES)
async def test_where_a_body_may_be_long_there_is_a_door(path, http):
    paths = (f"/v1{path}", path)
    answers = [await http.post(one, json={"prompt": 1}) for one in paths]
    assert any(answer.status_code not in (404, 405) for answer in answers)
