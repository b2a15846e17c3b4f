"""One request, asked through every door of one server: the same picture, to the last pixel."""

import base64
import time

import grpc
import numpy as np
import pytest
from PIL import ImageChops

from fluxline.cli import given
from fluxline.engine import Budget, Engine
from fluxline.images import decode_mask, encode_mask, read_recipe
from fluxline.request import GenerationRequest, SamplingParams
from fluxline.server.rpc import image_gen_pb2 as pb
from fluxline.server.rpc.image_gen_pb2_grpc import ImageGenStub
from tests.clients.conftest import KEY
from tests.clients.picture import opened

pytestmark = pytest.mark.slow

PROMPT, SIDE, STEPS, GUIDANCE = "a red fox", 256, 4, 2.0
SEED = 7
METADATA = [("api-key", KEY)]
SIZED = {"prompt": PROMPT, "width": SIDE, "height": SIDE}


def posted(http, path, **fields):
    answer = http.post(path, json=fields)
    assert answer.is_success, answer.text
    return answer.json()


def awaited(http, path, is_over):
    """Poll until it is over."""
    for _ in range(600):
        said = http.get(path).json()
        if is_over(said):
            return said
        time.sleep(0.05)
    raise AssertionError(f"still not over: {said}")


def fetched(http, link):
    return opened(http.get(link).content)


def by_openai(http, seed, path="/v1/images/generations", **more):
    said = posted(http, path, **SIZED, steps=STEPS, guidance=GUIDANCE, seed=seed, **more)
    return opened(said["data"][0]["b64_json"])


def by_openai_of_azure(http, seed):
    return by_openai(http, seed, "/openai/deployments/mini/images/generations?api-version=1")


def by_openai_as_a_link(http, seed):
    asked = {"size": f"{SIDE}x{SIDE}", "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    said = posted(
        http,
        "/v1/images/generations",
        prompt=PROMPT,
        **asked,
        seed=seed,
        response_format="url",
    )
    return fetched(http, said["data"][0]["url"])


def by_single(http, seed, **more):
    asked = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "seed": seed}
    return fetched(http, posted(http, "/generate", **SIZED, **asked, **more)["image_url"])


def by_batch(http, seed):
    diversity = {
        "samplers": ["euler"],
        "nof_steps": [STEPS],
        "cfg_scales": [GUIDANCE],
        "seeds": "fixed",
        "base_seed": seed,
    }
    asked = {"nof_images": 1, "diversity": diversity, "output_format": "png"}
    return fetched(http, posted(http, "/generate", **SIZED, **asked)["images"][0]["url"])


def by_jobs(http, seed, **more):
    job = posted(http, "/v1/jobs", **SIZED, steps=STEPS, guidance=GUIDANCE, seed=seed, **more)
    done = awaited(http, f"/v1/jobs/{job['id']}", lambda said: said["finished_at"])
    return fetched(http, done["images"][0]["url"])


def by_queue(http, seed, **more):
    asked = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "seed": seed}
    number = posted(http, "/submit-request", **SIZED, **asked, **more)["request_id"]
    done = awaited(http, f"/request-status/{number}", lambda said: said["completed_at"])
    return fetched(http, done["result"]["image_url"])


def by_a1111(http, seed, path="/sdapi/v1/txt2img", **more):
    asked = {"steps": STEPS, "cfg_scale": GUIDANCE, "seed": seed, "sampler_name": "Euler"}
    return opened(posted(http, path, **SIZED, **asked, **more)["images"][0])


def by_bfl(http, seed, path="/v1/flux-dev", **more):
    asked = {"steps": STEPS, "guidance": GUIDANCE, "seed": seed, "output_format": "png"}
    number = posted(http, path, **SIZED, **asked, **more)["id"]
    done = awaited(http, f"/v1/get_result?id={number}", lambda said: said["status"] != "Pending")
    return fetched(http, done["result"]["sample"])


HTTP_DOORS = (
    by_openai_of_azure,
    by_openai_as_a_link,
    by_single,
    by_batch,
    by_jobs,
    by_queue,
    by_a1111,
    by_bfl,
)


@pytest.fixture(scope="module")
def wanted(http):
    return by_openai(http, SEED)


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield ImageGenStub(channel)


@pytest.fixture(scope="module")
def asked_by_grpc():
    return pb.GenerateRequest(
        **SIZED, num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=SEED
    )


@pytest.mark.parametrize("door", HTTP_DOORS, ids=lambda door: door.__name__)
def test_a_seed_gives_the_same_pixels_through_every_http_door(door, http, wanted):
    picture = door(http, SEED)

    assert picture.size == wanted.size == (SIDE, SIDE)
    assert picture.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("door", [by_openai, by_single, by_a1111], ids=lambda door: door.__name__)
def test_another_seed_gives_another_picture(door, http, wanted):
    assert door(http, SEED + 1).tobytes() != wanted.tobytes()


def test_a_picture_among_others_is_its_seeds_own_up_to_rounding(http):
    """What docs/limits.md says of batches: one level of 255 at most."""
    asked = {"prompt": PROMPT, "steps": STEPS}
    several = posted(http, "/v1/images/generations", **asked, seed=SEED, n=3)["data"]
    alone = posted(http, "/v1/images/generations", **asked, seed=SEED + 2)["data"]

    [among, by_itself] = (opened(datum["b64_json"]) for datum in (several[2], alone[0]))
    levels = [high for _, high in ImageChops.difference(among, by_itself).getextrema()]
    assert several[2]["seed"] == alone[0]["seed"]
    assert max(levels) <= 1


def test_a_seed_gives_the_same_pixels_by_grpc(stub, asked_by_grpc, wanted):
    answer = stub.Generate(asked_by_grpc, metadata=METADATA)

    assert answer.seed == SEED
    assert opened(answer.image_png).tobytes() == wanted.tobytes()


def test_a_seed_gives_the_same_pixels_by_grpcs_stream(stub, asked_by_grpc, wanted):
    told = list(stub.GenerateStream(asked_by_grpc, metadata=METADATA))

    file = b"".join(one.chunk.image_png for one in told if one.HasField("chunk"))
    assert opened(file).tobytes() == wanted.tobytes()


def test_a_seed_gives_the_same_pixels_by_grpcs_jobs(stub, asked_by_grpc, wanted):
    number = stub.Submit(pb.SubmitRequest(request=asked_by_grpc), metadata=METADATA).job_id
    for _ in range(600):
        job = stub.GetJob(pb.GetJobRequest(job_id=number), metadata=METADATA)
        if job.state not in ("queued", "running"):
            break
        time.sleep(0.05)

    assert opened(job.result.image_png).tobytes() == wanted.tobytes()


# ---- from a picture


EDITS, STRENGTH = "/v1/images/edits", 0.5


@pytest.fixture(scope="module")
def start(http):
    """The file of a picture to start from, of another shape than what is asked of it."""
    said = posted(http, "/v1/images/generations", prompt="a blue bird", size="160x96", seed=1)
    return base64.b64decode(said["data"][0]["b64_json"])


def from_json(http, file):
    link = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    return by_openai(http, SEED, EDITS, images=[{"image_url": link}], strength=STRENGTH)


def from_generations(http, file):
    text = base64.b64encode(file).decode()
    return by_openai(http, SEED, ref_images=[text], denoising_strength=STRENGTH)


def from_jobs(http, file):
    return by_jobs(http, SEED, image=base64.b64encode(file).decode(), strength=STRENGTH)


def from_img2img(http, file):
    text = base64.b64encode(file).decode()
    asked = {"init_images": [text], "denoising_strength": STRENGTH, "resize_mode": 1}
    return by_a1111(http, SEED, "/sdapi/v1/img2img", **asked)


@pytest.fixture(scope="module")
def edited(http, start):
    """The file of what is drawn from it, as a form asks."""
    form = {**SIZED, "steps": STEPS, "guidance": GUIDANCE, "seed": SEED, "strength": STRENGTH}
    said = http.post(EDITS, data=form, files={"image": start}).json()
    return base64.b64decode(said["data"][0]["b64_json"])


@pytest.mark.parametrize(
    "door", [from_json, from_generations, from_jobs, from_img2img], ids=lambda door: door.__name__
)
def test_a_picture_to_start_from_gives_the_same_pixels_through_every_http_door(
    door, http, start, edited
):
    assert door(http, start).tobytes() == opened(edited).tobytes()


def test_it_gives_the_same_pixels_by_grpc(stub, asked_by_grpc, start, edited):
    asked = pb.GenerateRequest(image=start, strength=STRENGTH)
    asked.MergeFrom(asked_by_grpc)
    answer = stub.Generate(asked, metadata=METADATA)

    assert opened(answer.image_png).tobytes() == opened(edited).tobytes()


def test_it_gives_the_same_pixels_from_an_engine_of_ones_own(start, edited):
    threads = read_recipe(edited).receipt.threads  # another count may round otherwise
    alone = Budget(batch_tokens=1, resident_tokens=1)
    asked = {"width": SIDE, "height": SIDE, "steps": STEPS, "guidance": GUIDANCE}
    with Engine("mini", budget=alone, threads=threads) as engine:
        [image] = engine.generate(PROMPT, seed=SEED, image=start, strength=STRENGTH, **asked)

    assert opened(image.data).tobytes() == opened(edited).tobytes()


def test_redrawn_wholly_it_is_as_if_it_had_not_been_given(http, start, edited, wanted):
    text = base64.b64encode(start).decode()

    assert by_openai(http, SEED, EDITS, image=text, strength=1).tobytes() == wanted.tobytes()
    assert opened(edited).tobytes() != wanted.tobytes()


# ---- a part of a picture


SIDES = (48, 0, 0, 24)  # left, top, right, bottom


@pytest.fixture(scope="module")
def mask():
    """The file of a mask of `start`: what is round in its middle is redrawn."""
    down, across = np.mgrid[:96, :160]
    return encode_mask(np.where(np.hypot(down - 48, across - 80) < 36, 255, 0).astype(np.uint8))


@pytest.fixture(scope="module", params=["mask", "expand"])
def part(request, mask):
    """What says which part is drawn, as JSON has it."""
    if request.param == "mask":
        return {"mask": base64.b64encode(mask).decode()}
    return {"expand": list(SIDES)}


@pytest.fixture(scope="module")
def drawn(http, start, mask, part):
    """The file of what is drawn of that part, as a form asks."""
    form = {**SIZED, "steps": STEPS, "guidance": GUIDANCE, "seed": SEED}
    files = {"image": start}
    if "mask" in part:
        files["mask"] = mask
    else:
        form["expand"] = ",".join(map(str, SIDES))
    said = http.post(EDITS, data=form, files=files).json()
    return base64.b64decode(said["data"][0]["b64_json"])


def part_by_bfl(http, seed, **part):
    if "mask" in part:
        return by_bfl(http, seed, "/v1/flux-pro-1.0-fill", **part)
    left, top, right, bottom = part.pop("expand")
    part |= {"left": left, "top": top, "right": right, "bottom": bottom}
    return by_bfl(http, seed, "/v1/flux-pro-1.0-expand", **part)


@pytest.mark.parametrize(
    "door",
    [
        by_openai,
        by_jobs,
        by_single,
        by_queue,
        part_by_bfl,
    ],
    ids=lambda door: door.__name__,
)
def test_a_part_of_a_picture_has_the_same_pixels_through_every_http_door(
    door, http, start, part, drawn
):
    text = base64.b64encode(start).decode()
    assert door(http, SEED, image=text, **part).tobytes() == opened(drawn).tobytes()


def test_a_mask_has_the_same_pixels_by_img2img(http, start, mask):
    text, part = (base64.b64encode(file).decode() for file in (start, mask))
    asked = {"init_images": [text], "mask": part, "denoising_strength": 1, "resize_mode": 1}
    asked |= {"mask_blur": 0, "inpainting_fill": 1}
    picture = by_a1111(http, SEED, "/sdapi/v1/img2img", **asked)
    wanted = by_openai(http, SEED, EDITS, image=text, mask=part)
    assert picture.tobytes() == wanted.tobytes()


def test_a_part_has_the_same_pixels_by_grpc(stub, asked_by_grpc, start, mask, part, drawn):
    asked = pb.GenerateRequest(image=start)
    if "mask" in part:
        asked.mask = mask
    else:
        left, top, right, bottom = SIDES
        asked.expand.CopyFrom(pb.Sides(left=left, top=top, right=right, bottom=bottom))
    asked.MergeFrom(asked_by_grpc)
    answer = stub.Generate(asked, metadata=METADATA)

    assert opened(answer.image_png).tobytes() == opened(drawn).tobytes()


def test_a_part_has_the_same_pixels_from_the_command_line(start, mask, part, drawn, tmp_path):
    threads = read_recipe(drawn).receipt.threads
    (tmp_path / "start.png").write_bytes(start)
    (tmp_path / "mask.png").write_bytes(mask)
    asked = {"width": SIDE, "height": SIDE, "steps": STEPS, "guidance": GUIDANCE}
    request = GenerationRequest(
        id="r",
        prompt=PROMPT,
        seed=SEED,
        source=given.read(tmp_path / "start.png", "image"),
        mask=given.read(tmp_path / "mask.png", "mask") if "mask" in part else None,
        params=SamplingParams(**asked),
    )
    if "expand" in part:
        request = given.expanded(request, ",".join(map(str, SIDES)))
    alone = Budget(batch_tokens=1, resident_tokens=1)
    with Engine("mini", budget=alone, threads=threads) as engine:
        [image] = engine.submit(request).result()

    assert opened(image.data).tobytes() == opened(drawn).tobytes()


def test_what_is_kept_of_it_comes_back_as_it_was(http, start, mask):
    form = {"prompt": PROMPT, "steps": STEPS, "seed": SEED, "size": "160x96"}
    said = http.post(EDITS, data=form, files={"image": start, "mask": mask}).json()
    picture = np.asarray(opened(said["data"][0]["b64_json"]))
    was, is_kept = np.asarray(opened(start)), decode_mask(mask, (96, 160)) == 0

    assert np.array_equal(picture[is_kept], was[is_kept])
    assert np.abs(picture[~is_kept].astype(int) - was[~is_kept]).mean() > 10
