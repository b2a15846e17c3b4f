"""A recipe goes into a file and comes out equal; strangers read its infotext; junk is refused."""

import json
import re
import struct
import time
import zlib
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluxline.approximation import Approximation
from fluxline.errors import InvalidParams, UnsupportedFormat
from fluxline.images import Receipt, Recipe, encode, read_recipe
from fluxline.images.containers import MAX_TEXT_BYTES, PNG_SIGNATURE, png_chunk
from fluxline.request import SEED_LIMIT, GenerationRequest, SamplingParams
from tests.images.pictures import noise

FORMATS = ["png", "jpeg", "webp", "avif"]

PLAIN = Recipe(
    prompt="a red fox",
    seed=123,
    model="flux1-dev",
    params=SamplingParams(width=1024, height=768, steps=20, guidance=3.5),
    software="fluxline 0.1.0",
)

RECEIPT = {
    "weights": "0123456789abcdef0123456789abcdef",
    "sigmas": [1.0, 0.75, 0.5, 0.0],
    "dtype": "float32",
    "device": "cpu AVX512",
    "torch": "2.9.0",
    "threads": 2,
}
REPLAYABLE = replace(PLAIN, receipt=Receipt(**RECEIPT | {"sigmas": (1.0, 0.75, 0.5, 0.0)}))

# The A1111 reader's grammar, in its own words (infotext_utils.py: re_param, parse_generation_...).
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def a1111(text):
    """Read infotext as A1111 does: the last line is parameters if it has three pairs or more."""
    *lines, last = text.strip().split("\n")
    assert len(PAIR.findall(last)) >= 3
    found, prompt, negative = {}, [], None
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            negative = []
            line = line.removeprefix("Negative prompt:").strip()
        (prompt if negative is None else negative).append(line)
    for key, value in PAIR.findall(last):
        found[key] = json.loads(value) if value[0] == value[-1] == '"' else value
    return "\n".join(prompt), "\n".join(negative or []), found


# A chosen alphabet: hypothesis takes eight seconds to tabulate all of Unicode in a fresh checkout.
MARKS = "aZ 09,:;\"'\\/-\n\r\t\x00\x7f\x85éß\xff狐き\u2028\ufeff🦊\ud83d"
words = st.text(MARKS, max_size=60) | st.sampled_from(
    [
        "",
        "a, b: c",
        'she said "no", twice',
        "two\nlines\n",
        "狐狸 きつね 🦊👩‍🚀",
        "Steps: 3, Seed: 4, Size: 1x1",
        "x\nSteps: 3, Sampler: y, Seed: 4\n",
        "Negative prompt: z",
        "back\\slash \x00 \ud83d \u2028 \r\n",
    ]
)
finite = st.floats(allow_nan=False, allow_infinity=False)
params = st.builds(
    SamplingParams,
    width=st.integers(1, 4096),
    height=st.integers(1, 4096),
    steps=st.integers(1, 200),
    sampler=st.sampled_from(["euler", "heun", "ddim", "dpmpp_2m", "euler_ancestral", "unipc"]),
    schedule=st.sampled_from(["simple", "karras", "beta", "exponential"]),
    guidance=st.none() | finite,
    cfg_scale=finite,
    negative_prompt=words,
    eta=finite,
)
receipts = st.builds(
    Receipt,
    weights=words,
    sigmas=st.lists(finite, max_size=9).map(tuple),
    dtype=words,
    device=words,
    torch=words,
    threads=st.integers(1, 512),
    beside=st.integers(0, 99),
)
recipes = st.builds(
    Recipe,
    prompt=words,
    seed=st.integers(0, SEED_LIMIT - 1),
    model=words,
    params=params,
    software=words,
    rendered=st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    compression=st.none() | st.integers(0, 100),
    receipt=st.none() | receipts,
)


@settings(max_examples=40, deadline=None)
@given(recipes, st.sampled_from(FORMATS))
def test_recipe_comes_back_equal_from_every_kind_of_file(recipe, format):
    assert read_recipe(encode(noise(2, 2), format=format, recipe=recipe)) == recipe


@settings(max_examples=120, deadline=None)
@given(recipes)
@example(replace(PLAIN, model='dev, "tuned": v2'))
def test_a1111_reader_finds_seed_steps_and_size_whatever_the_prompt_says(recipe):
    _, _, found = a1111(recipe.to_infotext())
    assert (found["Seed"], found["Steps"]) == (str(recipe.seed), str(recipe.params.steps))
    assert found["Size"] == f"{recipe.params.width}x{recipe.params.height}"


@pytest.mark.parametrize("model", ["a, b", "a: b", 'a "b"', "a\nb", "狐:1", '"a"', " a "])
def test_value_that_would_end_early_is_quoted_and_read_back(model):
    assert a1111(replace(PLAIN, model=model).to_infotext())[2]["Model"] == model


def test_how_ranks_approximated_is_kept_and_told():
    parallel = Approximation(mode="piflux", sync=2, every=8)
    recipe = replace(PLAIN, params=replace(PLAIN.params, parallel=parallel))

    assert Recipe.from_json(recipe.to_json()) == recipe
    assert a1111(recipe.to_infotext())[2]["Parallel"] == "piflux,sync=2,every=8"
    with pytest.raises(InvalidParams, match="mode"):
        Recipe.from_json(recipe.to_json().replace("piflux", "fluxpi"))


def test_infotext_is_what_other_programs_write():
    assert PLAIN.to_infotext() == (
        "a red fox\n"
        "Steps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: 1, "
        "Distilled CFG Scale: 3.5, Seed: 123, Size: 1024x768, Model: flux1-dev, "
        "Version: fluxline 0.1.0"
    )


def test_negative_prompt_has_a_line_of_its_own_between():
    recipe = replace(PLAIN, params=replace(PLAIN.params, negative_prompt="blur,\nnoise"))
    assert a1111(recipe.to_infotext())[:2] == ("a red fox", "blur,\nnoise")
    assert recipe.to_infotext().split("\n")[1] == "Negative prompt: blur,"


def test_steps_open_a_line_even_after_an_empty_prompt():
    assert replace(PLAIN, prompt="").to_infotext().startswith("\nSteps: 20, ")


def test_rendered_size_is_told_only_where_it_differs():
    assert "Rendered size" not in PLAIN.to_infotext()
    assert a1111(replace(PLAIN, rendered=(128, 96)).to_infotext())[2]["Rendered size"] == "128x96"


def test_request_from_a_recipe_draws_that_one_picture():
    assert PLAIN.to_request("r1") == GenerationRequest(
        id="r1", prompt="a red fox", seed=123, n=1, model="flux1-dev", params=PLAIN.params
    )
    assert replace(PLAIN, compression=40).to_request("r1").compression == 40


def test_unresolved_params_are_no_recipe():
    with pytest.raises(InvalidParams, match="steps of a recipe") as caught:
        replace(PLAIN, params=SamplingParams(width=8, height=8))
    assert caught.value.field == "steps"


def test_recipe_written_before_a_parameter_existed_reads_with_its_default():
    older = json.loads(PLAIN.to_json())
    del older["params"]["eta"]
    assert Recipe.from_json(json.dumps(older)) == PLAIN


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema": 2}, "schema"),
        ({"schema": True}, "schema"),
        ({"prompt": 5}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"params": None}, "params"),
        ({"params": {"width": 8, "height": 8, "steps": 4, "sampler": "magic"}}, "sampler"),
        ({"params": {"width": 8, "height": 8, "steps": True}}, "steps"),
        ({"params": {"width": 8, "height": 8, "steps": 4, "eta": float("nan")}}, "eta"),
        ({"params": {"width": 8, "height": 8, "steps": 4, "eta": 10**400}}, "eta"),
        ({"rendered": [1, 2, 3]}, "rendered"),
        ({"compression": 8.5}, "compression"),
        ({"receipt": "r"}, "receipt"),
        ({"receipt": {}}, "weights"),
        ({"receipt": {**RECEIPT, "sigmas": [1.0, "x"]}}, "sigmas"),
    ],
)
def test_malformed_field_is_refused_by_name(change, field):
    with pytest.raises(InvalidParams) as caught:
        Recipe.from_json(json.dumps({**json.loads(PLAIN.to_json()), **change}))
    assert caught.value.field == field


def test_fields_of_a_newer_version_are_passed_over_and_told():
    newer = json.loads(REPLAYABLE.to_json()) | {"mood": "calm", "unread": ["x"]}
    newer["params"]["loudness"] = 0.5
    newer["receipt"]["kernels"] = ["a"]

    recipe = Recipe.from_json(json.dumps(newer))

    assert recipe.unread == ("'params.loudness'", "'receipt.kernels'", "'recipe.mood'")
    assert replace(recipe, unread=()) == REPLAYABLE


def test_receipts_differ_in_words():
    one = REPLAYABLE.receipt
    later = replace(one, torch="2.10.0", dtype="bfloat16", threads=9, beside=3)
    assert one.differences(one) == []
    assert one.differences(later) == [
        "dtype float32 then, bfloat16 now",
        "torch 2.9.0 then, 2.10.0 now",
    ]


def test_receipts_of_other_ranks_differ_in_words():
    now = replace(REPLAYABLE.receipt, parallel="ulysses=2")
    assert REPLAYABLE.receipt.differences(now) == ["drawn by one rank then, ulysses=2 now"]


def test_recipe_of_a_hundred_steps_stays_small():
    sigmas = tuple(1 - k / 99.7 for k in range(101))
    recipe = replace(REPLAYABLE, receipt=replace(REPLAYABLE.receipt, sigmas=sigmas))
    assert len(REPLAYABLE.to_json()) < 600
    assert len(recipe.to_json()) < 3000


def test_missing_field_is_refused_by_name():
    less = json.loads(PLAIN.to_json())
    del less["model"]
    with pytest.raises(InvalidParams, match="lacks its field model"):
        Recipe.from_json(json.dumps(less))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000, '"x"', "9" * 5000])
def test_text_that_is_no_json_object_is_refused(text):
    with pytest.raises(InvalidParams, match="recipe"):
        Recipe.from_json(text)


def test_recipe_above_the_limit_is_refused_unread():
    with pytest.raises(InvalidParams, match="at most"):
        Recipe.from_json(" " * (MAX_TEXT_BYTES + 1))


def png_with(kind, body):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return PNG_SIGNATURE + header + png_chunk(kind, body) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        (b"tEXt", b"fluxline_request\0"),
        (b"zTXt", b"fluxline_request\0\0"),
        (b"iTXt", b"fluxline_request\0\1\0\0\0"),
    ],
)
def test_text_above_the_limit_is_refused_packed_or_not(kind, head):
    text = b" " * (MAX_TEXT_BYTES + 1)
    with pytest.raises(InvalidParams, match="more text than"):
        read_recipe(png_with(kind, head + (text if kind == b"tEXt" else zlib.compress(text))))


@pytest.mark.parametrize(
    ("kind", "head"),
    [(b"zTXt", b"fluxline_request\0\0"), (b"iTXt", b"fluxline_request\0\1\0\0\0")],
)
def test_recipe_packed_by_another_program_is_read_without_touching_huge_pixels(kind, head):
    text = zlib.compress(PLAIN.to_json().encode())
    assert read_recipe(png_with(kind, head + text)) == PLAIN


@pytest.mark.parametrize("format", FORMATS)
def test_picture_without_a_recipe_reads_as_none(format):
    assert read_recipe(encode(noise(3, 3), format=format)) is None


def test_exif_that_names_its_note_a_thousand_times_is_read_once():
    fields = struct.pack(">HHII", 0x927C, 7, 2**24, 26) * 65535
    tiff = b"MM\0\x2a" + struct.pack(">IHHHIII", 8, 1, 0x8769, 4, 1, 26, 0)
    tiff += struct.pack(">H", 65535) + fields
    exif = b"EXIF" + struct.pack("<I", 2**24) + tiff.ljust(2**24, b"\0")
    began = time.perf_counter()
    assert read_recipe(b"RIFF\0\0\0\0WEBP" + exif) is None
    assert time.perf_counter() - began < 5  # each copy of it takes milliseconds


def test_file_that_is_no_picture_is_an_unsupported_format():
    with pytest.raises(UnsupportedFormat, match="PNG, JPEG, WebP or AVIF"):
        read_recipe(b"GIF89a")


def test_flipped_bit_in_the_recipe_is_noticed():
    data = bytearray(encode(noise(2, 2), format="png", recipe=PLAIN))
    data[data.index(b"fluxline_request") + 30] ^= 1
    with pytest.raises(InvalidParams, match="broken"):
        read_recipe(bytes(data))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(12, 1200), st.binary(max_size=4))
def test_mangled_file_is_read_or_refused_and_never_anything_else(format, at, junk):
    data = encode(noise(2, 2), format=format, recipe=PLAIN)
    for mangled in (data[:at], data[:at] + junk + data[at + len(junk) :]):
        try:
            found = read_recipe(mangled)
        except InvalidParams:
            continue
        assert found is None or isinstance(found, Recipe)
