"""Pictures in bodies: found whatever the form, fetched only where that is allowed, made to fit."""

import asyncio
import base64
import io
import time

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fluxline import images
from fluxline.errors import InvalidParams
from fluxline.images import decode, encode
from fluxline.request import GenerationRequest, SamplingParams
from fluxline.server.fields import Fields, FormFields, UnsupportedParam
from fluxline.server.outside import Outside
from fluxline.server.uploads import Upload, Uploads
from tests.images.pictures import noise, ramp
from tests.worker.fake_engine import INFO

FILE = encode(noise(8, 4), format="png")
TEXT = base64.b64encode(FILE).decode()


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
    upload = await uploads.read(Fields(body))
    assert np.array_equal(upload.pixels, noise(8, 4))
    assert upload.shape == (8, 4)


@pytest.mark.parametrize("body", [{}, {"image": None}, {"image": ""}, {"images": []}])
async def test_where_there_is_none_there_is_none(body, uploads):
    assert await uploads.read(Fields(body)) is None


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
        ({"ref_images": ["aGVsbG8="]}, InvalidParams, "ref_images must be a whole PNG"),
        ({"image": [TEXT, TEXT]}, UnsupportedParam, "image: one picture may be given"),
        ({"images": [{"file_id": "file-1"}]}, UnsupportedParam, "file_id is not served"),
        ({"image": TEXT, "images": FILE}, InvalidParams, "image and images mean the same"),
        ({"image": "https://example.com/a.png"}, InvalidParams, "--image-hosts"),
        ({"images": [{"image_url": "http://[::1]/"}]}, InvalidParams, "--image-hosts"),
    ],
)
async def test_what_is_wrong_is_said_by_the_name_that_was_used(body, kind, words, uploads):
    with pytest.raises(kind) as caught:
        await uploads.read(Fields(body))
    assert words in caught.value.message
    assert caught.value.field in body


async def test_a_picture_is_fetched_where_the_operator_allows_it(listener):
    listener.answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(FILE) + FILE
    uploads = Uploads(Outside("127.0.0.1", option="--image-hosts"), most_bytes=10_000)
    upload = await uploads.read(Fields({"image": f"http://127.0.0.1:{listener.port}/a.png"}))
    assert np.array_equal(upload.pixels, noise(8, 4))
    with pytest.raises(InvalidParams, match=r"may not lead to example\.com"):
        await uploads.read(Fields({"image": "https://example.com/a.png"}))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", "answered 404"),
        (b"HTTP/1.1 302 F\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n", "302"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2**20, "has more than 10000 bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntext", "must be a whole PNG"),
    ],
)  # fmt: skip
async def test_what_is_fetched_and_is_no_picture_is_refused(answer, words, listener):
    listener.answer = answer
    uploads = Uploads(Outside("127.0.0.1", option="--image-hosts"), most_bytes=10_000)
    with pytest.raises(InvalidParams) as caught:
        await uploads.read(Fields({"image": f"http://127.0.0.1:{listener.port}/"}))
    assert words in caught.value.message


def request(**params):
    return GenerationRequest(id="r", prompt="a fox", seed=1, params=SamplingParams(**params))


async def test_two_are_decoded_at_a_time(uploads, monkeypatch):
    running, most = 0, 0

    def slow(data):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return decode(data)

    monkeypatch.setattr(images, "decode", slow)
    await asyncio.gather(*(uploads.decode(FILE, "image") for _ in range(8)))
    assert most == 2


async def test_nothing_that_a_file_says_beside_its_pixels_goes_further(uploads):
    where, said, file = Image.Exif(), PngInfo(), io.BytesIO()
    where[0x010F] = "Camera of Ann"
    said.add_text("Comment", "drawn at home")
    Image.fromarray(noise(64, 64)).save(file, "PNG", exif=where, pnginfo=said)
    assert b"Camera of Ann" in file.getvalue()

    started = await (await uploads.decode(file.getvalue(), "image")).start(
        request(width=64, height=64)
    )
    with Image.open(io.BytesIO(started.image)) as picture:
        assert (dict(picture.getexif()), picture.info) == ({}, {})
    assert np.array_equal(decode(started.image), noise(64, 64))


async def test_a_request_starts_from_the_middle_at_its_own_size():
    started = await Upload(ramp(200, 100)).start(request(width=64, height=64))
    pixels = decode(started.image)
    assert pixels.shape == (64, 64, 3)
    assert 60 < pixels[32, 0, 0] < 70  # a quarter from the left


async def test_or_from_the_whole_stretched():
    started = await Upload(ramp(200, 100)).start(request(width=64, height=64), is_stretched=True)
    assert decode(started.image)[32, 0, 0] < 5


def test_the_size_follows_the_picture_unless_it_is_asked():
    upload = Upload(noise(200, 100))
    sized = upload.sized(SamplingParams(), INFO)
    assert (sized.width, sized.height) == (96, 48)
    sized = upload.sized(SamplingParams(width=100, height=80), INFO)
    assert (sized.width, sized.height) == (100, 80)
    sized = upload.sized(SamplingParams(width=100), INFO)
    assert (sized.width, sized.height) == (100, 48)


@pytest.mark.parametrize("side", [{"width": 60_000}, {"height": 60_000}])
def test_no_size_is_taken_that_the_model_does_not_draw(side):
    with pytest.raises(InvalidParams, match="from 1 to 512; got 60000"):
        Upload(noise(200, 100)).sized(SamplingParams(**side), INFO)


def test_what_falls_away_is_said_when_it_is_much():
    upload = Upload(noise(200, 100))
    assert upload.warnings(SamplingParams(width=96, height=48)) == []
    assert "its middle is used" in upload.warnings(SamplingParams(width=64, height=64))[0]


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
