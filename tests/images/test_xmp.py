"""Every kind of file says to strangers that a model made it, whatever the recipe says."""

from io import BytesIO
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fluxline.images import encode
from fluxline.images.xmp import TRAINED, xmp
from tests.images.pictures import noise
from tests.images.test_recipe import FORMATS, PLAIN, recipes

XMP = "{http://ns.adobe.com/xap/1.0/}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"


def description(packet):
    [found] = ElementTree.fromstring(packet).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    return found.attrib


@settings(max_examples=40, deadline=None)
@given(recipes, st.sampled_from(FORMATS))
def test_pillow_opens_every_file_and_finds_its_origin(recipe, format):
    with Image.open(BytesIO(encode(noise(3, 2), format=format, recipe=recipe))) as picture:
        picture.load()
        said = description(picture.info["xmp"])
    assert picture.size == (3, 2)
    assert said[f"{IPTC}DigitalSourceType"] == TRAINED


@pytest.mark.parametrize("format", FORMATS)
def test_origin_names_the_program_and_not_the_prompt(format):
    with Image.open(BytesIO(encode(noise(3, 2), format=format, recipe=PLAIN))) as picture:
        packet = picture.info["xmp"]
    assert description(packet)[f"{XMP}CreatorTool"] == "fluxline 0.1.0"
    assert PLAIN.prompt.encode() not in packet


def test_origin_stays_where_the_recipe_is_too_long_for_a_jpeg():
    params = {"prompt": "狐" * 20_000, "seed": 1, "model": "m", "params": PLAIN.params}
    data = encode(noise(8, 8), format="jpeg", recipe=type(PLAIN)(**params, software="s"))
    with Image.open(BytesIO(data)) as picture:
        assert "exif" not in picture.info
        assert description(picture.info["xmp"])[f"{XMP}CreatorTool"] == "s"


@given(st.text("a<&>\"'\n\t\x00\x1b\x85\ufffe\ud83d狐🦊", max_size=20))
def test_name_comes_back_as_given_but_for_what_xml_cannot_say(name):
    said = description(xmp(name).encode())[f"{XMP}CreatorTool"]
    for mark in "\x00\x1b\ufffe\ud83d":
        name = name.replace(mark, "\ufffd")
    assert said == name
