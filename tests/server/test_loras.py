"""The example LoRA through a real server and its worker."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from fluxline.images import read_recipe
from fluxline.request import LoraRef
from tests.running import ROOT
from tests.served import served

FOX = {"prompt": "an ink drawing of a fox", "seed": 3, "steps": 4}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with (
        served(folder, "--loras", str(ROOT / "examples")) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def drawn(client, **body):
    answer = client.post("/v1/images/generations", json={**FOX, **body})
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def colourfulness(data):
    return np.ptp(np.asarray(Image.open(io.BytesIO(data))).astype(int), axis=2).mean()


@pytest.mark.slow
def test_the_example_is_listed_named_applied_and_removed(client):
    [ink] = client.get("/loras").json()["loras"]
    plain = drawn(client)
    named = drawn(client, loras=[{"name": "ink", "strength": 0.8}])
    client.post("/apply-lora", params={"lora_name": "ink", "weight": 0.8}).raise_for_status()
    applied = drawn(client)
    client.post("/remove-lora").raise_for_status()
    after = drawn(client)
    unknown = client.post("/v1/images/generations", json={**FOX, "loras": ["who"]})

    assert (ink["rank"], ink["trigger_words"]) == (8, ["ink drawing"])
    assert colourfulness(plain) > 2 * colourfulness(named)
    assert (applied, after) == (named, plain)
    recipe = read_recipe(applied)
    assert recipe.params.loras == (LoraRef("ink", 0.8),)
    assert recipe.receipt.loras == (ink["hash"],)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "lora_not_found")
