"""The examples of the READMEs before us, run as they stand; what comes back must be true."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.examples import (
    DUAL_APPLY_LORA,
    DUAL_BF16,
    DUAL_ENDPOINTS,
    DUAL_FP4,
    DUAL_HEALTH,
    DUAL_STATUS,
    FLUE,
    GRPC_CLIENT,
    GRPC_METRICS,
    GRPC_METRICS_KEYS,
    GRPC_PROTO,
)
from tests.clients.picture import opened

pytestmark = pytest.mark.slow

OUR_PROTO = Path(__file__).parents[2] / "src/fluxline/server/rpc/image_gen.proto"


# ---- Flue


def test_flues_curl_draws_the_size_it_asks_for(curl):
    status, body = curl(FLUE)

    said = json.loads(body)
    picture = opened(said["image"])
    assert (status, picture.size, picture.format) == (200, (512, 512), "PNG")
    assert said["gen_time"] > 0
    assert any("128x128" in line for line in said["warnings"])  # drawn small, and it says so


def test_flues_guidance_scale_and_seed_reach_the_picture(curl):
    asked = [(7.5, 1), (7.5, 1), (1.0, 1), (7.5, 2)]
    drawn = [
        json.loads(curl(FLUE.replace("7.5", f'{guidance}, "seed": {seed}'))[1])["image"]
        for guidance, seed in asked
    ]

    first, again, unguided, other = (opened(image).tobytes() for image in drawn)
    assert first == again
    assert len({first, unguided, other}) == 3


# ---- the batch service: its README has a table of fields, and no command


def test_a_batch_of_every_field_is_as_its_answer_says(http, stranger):
    diversity = {
        "samplers": ["euler", "dpmpp_2m"],
        "nof_steps": [4, 6],
        "cfg_scales": [3.5],
        "seeds": "random",
    }
    asked = {"nof_images": 4, "gpus": 1, "diversity": diversity, "stream": False, "top_k": 2}

    said = http.post("/generate", json={"prompt": "a red fox", **asked}).json()

    pictures = [opened(stranger.get(image["url"]).content) for image in said["images"]]
    assert (said["prompt"], said["count"]) == ("a red fox", 2)
    assert said["latency_ms"] > 0
    assert [(p.size, p.format) for p in pictures] == [((512, 512), "JPEG")] * 2
    assert pictures[0].tobytes() != pictures[1].tobytes()
    told = [image["sampling_params"] for image in said["images"]]
    assert all(one["sampler"] in diversity["samplers"] for one in told)
    assert all(one["steps"] in (4, 6) and one["cfg_scale"] == 3.5 for one in told)


def test_a_batch_that_says_nothing_is_sixteen_different_pictures(http, stranger):
    said = http.post("/generate", json={"prompt": "a red fox", "gpus": 1}).json()

    files = {stranger.get(image["url"]).content for image in said["images"]}
    told = {json.dumps(image["sampling_params"]) for image in said["images"]}
    assert (said["count"], len(files), len(told)) == (16, 16, 16)


def test_a_streamed_batch_tells_each_link_and_then_all(http, stranger):
    asked = {"prompt": "a red fox", "nof_images": 3, "stream": True, "steps": 4}
    with http.stream("POST", "/generate", json=asked) as answer:
        *each, last = (json.loads(line) for line in answer.iter_lines())

    assert sorted(image["index"] for image in each) == [0, 1, 2]
    assert last["count"] == 3
    assert all(opened(stranger.get(image["url"]).content) for image in each)


@pytest.mark.parametrize(("seeds", "count"), [("fixed", 1), ("random", 3), ("mix", 3)])
def test_the_seeds_of_a_batch_are_as_asked(seeds, count, http):
    said = http.post(
        "/generate",
        json={
            "prompt": "a red fox",
            "nof_images": 3,
            "diversity": {"samplers": ["euler"], "nof_steps": [4], "seeds": seeds},
        },
    ).json()

    assert len({image["sampling_params"]["seed"] for image in said["images"]}) == count


# ---- the dual service


@pytest.fixture(scope="module")
def dual(curl, stranger):
    """Its two pictures: what was said, and the file behind the link."""
    told = []
    for command in (DUAL_FP4, DUAL_BF16):
        status, body = curl(command)
        assert status == 200, body
        said = json.loads(body)
        told.append((said, stranger.get(said["image_url"])))
    return told


def test_a_picture_of_the_dual_service_is_as_its_answer_says(dual):
    for said, link in dual:
        picture = opened(link.content)
        assert (said["width"], said["height"]) == picture.size == (768, 768)
        assert (said["num_inference_steps"], said["guidance_scale"], said["seed"]) == (30, 4.0, 42)
        assert re.fullmatch(r"\d+\.\d\ds", said["generation_time"])
        assert link.headers["content-type"] == "image/png"
    assert [said["negative_prompt"] for said, _ in dual] == ["blurry, low quality", None]


def test_its_negative_prompt_changes_the_picture_and_its_seed_repeats_it(dual, curl, stranger):
    (_, avoiding), (_, plain) = dual
    again = json.loads(curl(DUAL_BF16)[1])["image_url"]

    assert opened(avoiding.content).tobytes() != opened(plain.content).tobytes()
    assert opened(stranger.get(again).content).tobytes() == opened(plain.content).tobytes()


def test_where_keys_are_asked_for_a_lora_is_applied_by_an_admin_alone(curl):
    status, body = curl(DUAL_APPLY_LORA)

    assert status == 403
    assert "an admin key" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("command", DUAL_STATUS.split("\n\n"))
def test_its_status_is_told(command, curl):
    status, body = curl(command)

    said = json.loads(body)
    assert (status, said["model_loaded"], said["model"]) == (200, True, "mini")
    assert said["model_type"] in ("flux_fp32_cpu", "flux_bf16_gpu", "flux_fp32_gpu")


@pytest.mark.parametrize("command", DUAL_HEALTH.split("\n\n"))
def test_its_health_asks_for_no_key(command, curl_without_key):
    status, body = curl_without_key(command)

    assert (status, json.loads(body)["status"]) == (200, "healthy")


@pytest.mark.parametrize("endpoint", DUAL_ENDPOINTS)
def test_its_endpoints_are_there(endpoint, http):
    answer = http.request(*endpoint.split())

    is_for_all = endpoint != "POST /remove-lora"  # it acts on everybody's pictures
    assert answer.status_code == (200 if is_for_all else 403), answer.text
    assert answer.json()


# ---- the gRPC server


@pytest.fixture(scope="module", params=["of this project", "of its README"])
def stubs(request, tmp_path_factory):
    """A folder with the code that its user generates."""
    folder = tmp_path_factory.mktemp("stubs")
    is_ours = request.param == "of this project"
    text = OUR_PROTO.read_text() if is_ours else GRPC_PROTO
    (folder / "image_gen.proto").write_text(text)
    command = "-m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. image_gen.proto"
    subprocess.run([sys.executable, *command.split()], cwd=folder, check=True)
    return folder


def test_the_grpc_client_draws(stubs, here):
    subprocess.run([sys.executable, "-c", here(GRPC_CLIENT)], cwd=stubs, check=True)

    picture = opened((stubs / "output.png").read_bytes())
    assert (picture.size, picture.format) == ((512, 512), "PNG")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("client1", "client3"), "UNAUTHENTICATED"),
        (("steps=15", "steps=21"), "num_inference_steps must be from 1 to 20; got 21"),
        (("7.5", "11"), "guidance_scale must be from 0.1 to 10.0; got 11"),
        (("height=512", "height=0"), "height must be from 1 to 1024; got 0"),
    ],
)
def test_the_grpc_client_is_told_what_is_wrong(wrong, said, stubs, here):
    client = here(GRPC_CLIENT).replace(*wrong)
    ran = subprocess.run([sys.executable, "-c", client], cwd=stubs, capture_output=True, text=True)

    assert ran.returncode == 1
    assert said in ran.stderr


def test_its_metrics_ask_for_no_key_and_know_that_grpc_lives(curl_without_key):
    status, body = curl_without_key(GRPC_METRICS)

    said = json.loads(body)
    assert (status, set(said)) == (200, GRPC_METRICS_KEYS)
    assert (said["worker_alive"], said["grpc_alive"]) == (True, True)
    assert said["ram_used_mb"] > 100
