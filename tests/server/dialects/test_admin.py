"""The dual service's routes: the model's state, and its queue."""

import asyncio

import pytest

from fluxline.ability import ModelInfo
from tests.worker.fake_engine import INFO, picture


@pytest.fixture
def asleep(replica):
    replica.state, replica.reason = "failed", "no model"
    return replica


async def test_a_loaded_model_is_told_with_its_memory(http):
    said = (await http.get("/model-status")).json()

    assert (said["model_loaded"], said["model_type"]) == (True, "flux_fp32_cpu")
    assert (said["selected_gpu"], said["vram_usage_gb"]) == (None, "0.00GB")
    assert said["system_memory_total_bytes"] > said["system_memory_used_bytes"] > 0
    assert (said["lora_loaded"], said["lora_weight"], said["lora_applied"]) == (None, None, False)


async def test_a_model_that_is_not_there_is_told_truthfully(http, asleep):
    said = (await http.get("/model-status")).json()
    loading = await http.post("/load-model")

    assert (said["model_loaded"], said["model_type"]) == (False, None)
    assert loading.status_code == 503
    assert "no model" in loading.json()["detail"]
    assert (await http.get("/")).json()["model_loaded"] is False
    assert (await http.get("/health")).json()["status"] == "failed"


async def test_loading_again_does_no_harm(http):
    said = (await http.post("/load-model")).json()

    told = {"model_type": "flux_fp32_cpu", "profile": "fake"}
    assert said == {"message": "Model fake is already loaded", **told}


async def test_the_devices_are_told(http):
    said = (await http.get("/gpu-info")).json()

    assert (said["gpu_count"], said["devices"][0]["device"]) == (0, "cpu")


async def submitted(http, **body):
    answer = await http.post("/submit-request", json={"prompt": "a fox", **body})
    assert answer.status_code == 202, answer.text
    return answer.json()["request_id"]


async def status(http, request_id, word):
    async with asyncio.timeout(20):
        while True:
            said = (await http.get(f"/request-status/{request_id}")).json()
            if said["status"] == word:
                return said
            await asyncio.sleep(0.002)


async def test_a_queued_request_goes_to_its_end_and_keeps_its_link(http, engine):
    request_id = await submitted(http, width=256, seed=5, priority=2)
    said = await status(http, request_id, "completed")

    [request] = engine.started
    assert (request.priority, said["priority"], said["params"]["seed"]) == (2, 2, 5)
    assert said["created_at"] <= said["started_at"] <= said["completed_at"]
    assert (await http.get(said["result"]["image_url"])).content == picture(request, 0)


async def test_a_queued_request_can_be_cancelled_and_a_finished_one_is_left(http, engine):
    running = await submitted(http, prompt="hang")
    await status(http, running, "processing")
    said = (await http.delete(f"/cancel-request/{running}")).json()
    await status(http, running, "cancelled")
    done = await submitted(http)
    await status(http, done, "completed")
    late = (await http.delete(f"/cancel-request/{done}")).json()

    assert said["message"] == "Request cancelled"
    assert (late["message"], late["status"]) == ("Request is completed already", "completed")
    stats = (await http.get("/queue-stats")).json()
    assert (stats["completed"], stats["cancelled"], stats["total"]) == (1, 1, 2)


async def test_a_failed_request_says_why_and_an_unknown_one_is_a_404(http):
    request_id = await submitted(http, prompt="blown")
    said = await status(http, request_id, "failed")

    assert "no memory" in said["error"]
    for method, path in (("GET", "/request-status/who"), ("DELETE", "/cancel-request/who")):
        answer = await http.request(method, path)
        assert (answer.status_code, answer.json()["detail"]) == (404, "no request who")


async def test_a_wrong_field_of_a_queued_request_is_refused_at_once(http):
    answer = await http.post("/submit-request", json={"prompt": "a fox", "width": 1})

    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "width"])


async def test_what_is_really_in_memory_is_named_wherever_a_model_is(http, engine):
    facts = {name: getattr(INFO, name) for name in ModelInfo.__slots__}
    engine.models = (ModelInfo(**{**facts, "precision": "nf4", "notes": ("T5 is not",)}),)

    status, gpus = (await http.get("/model-status")).json(), (await http.get("/gpu-info")).json()
    [listed] = (await http.get("/v1/models")).json()["data"]

    assert status["model_type"] == "flux_nf4_cpu"
    assert gpus["devices"][0]["precision"] == "nf4"
    assert (listed["precision"], listed["notes"]) == ("nf4", ["T5 is not"])
