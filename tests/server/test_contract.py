"""Every operation of the OpenAPI document, asked well and badly: answered in its form, never a 5xx.

Every POST is given one schema of fields that doors know, in place of its own, so that each is
asked what others take as well. Deterministic, and bounded by EXAMPLES.
"""

import asyncio
import base64
import copy
import json
import re

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from fluxline.images import encode
from fluxline.server import envelope
from tests.images.pictures import noise

EXAMPLES = 5  # of each operation, well and badly asked
LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|site-packages|\.py\b|sqlite|SELECT |/tmp/", re.ASCII)
ERROR = jsonschema_rs.validator_for(
    envelope.DOCUMENTED["default"]["content"]["application/json"]["schema"]
)
PIXEL = base64.b64encode(encode(noise(1, 1), format="png")).decode()
SIDE = {"type": "integer", "minimum": 1, "maximum": 600}
SCALE = {"type": "number", "minimum": 0, "maximum": 200}
BODY = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string", "minLength": 1, "maxLength": 40},
        "negative_prompt": {"type": ["string", "null"]},
        "model": {"enum": ["default", "fake", "dall-e-3", "who", None]},
        "n": {"type": "integer", "minimum": 1, "maximum": 5},
        "nof_images": {"type": "integer", "minimum": 1, "maximum": 20},
        "batch_size": {"type": "integer", "minimum": 1, "maximum": 5},
        "size": {"type": "string", "pattern": "^([1-9][0-9]{1,2}x[1-9][0-9]{1,2}|auto)$"},
        "width": SIDE,
        "height": SIDE,
        "steps": {"type": "integer", "minimum": 1, "maximum": 60},
        "seed": {"type": "integer", "minimum": -1, "maximum": 2**63},
        "guidance_scale": SCALE,
        "cfg_scale": SCALE,
        "image": {"enum": [PIXEL, f"data:image/png;base64,{PIXEL}", "no", "", None]},
        "mask": {"enum": [PIXEL, "no", "", None]},
        "expand": {"type": "array", "items": {"type": "integer", "maximum": 600}, "maxItems": 5},
        "ref_images": {"type": "array", "items": {"enum": [PIXEL, "no"]}, "maxItems": 3},
        "input_image": {"enum": [PIXEL, "no", None]},
        "init_images": {"type": "array", "items": {"enum": [PIXEL, "no"]}, "maxItems": 2},
        "strength": {"type": "number", "minimum": 0, "maximum": 1},
        "eta": {"type": "number", "minimum": 0, "maximum": 1},
        "sampler": {"enum": ["euler", "heun", "ddim", "dpmpp_2m", "who"]},
        "schedule": {"enum": ["simple", "karras", "beta", "who"]},
        "output_format": {"enum": ["png", "jpeg", "webp", "jpg", "gif"]},
        "response_format": {"enum": ["b64_json", "url"]},
        "quality": {"enum": ["auto", "low", "hd", "who"]},
        "stream": {"type": "boolean"},
        "strict": {"type": "boolean"},
        "partial_images": {"type": "integer", "minimum": 0, "maximum": 4},
        "top_k": {"type": "integer", "minimum": 1, "maximum": 5},
        "deadline_s": {"type": "number", "minimum": 1, "maximum": 1000},
        "priority": {"type": "integer", "minimum": -11, "maximum": 11},
        "diversity": {
            "type": "object",
            "properties": {
                "samplers": {"type": "array", "items": {"enum": ["euler", "heun"]}},
                "nof_steps": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                "seeds": {"enum": ["random", "fixed", "sequential", "who"]},
            },
        },
        "override_settings": {"type": "object"},
        "lora_name": {"enum": ["who", "../etc", "a/b", "", None]},
        "lora_weight": {"type": "number", "minimum": -1, "maximum": 3},
        "loras": {
            "type": "array",
            "items": {
                "anyOf": [
                    {"enum": ["who", "", 1]},
                    {"type": "object", "properties": {"name": {"enum": ["who", 1, None]}}},
                ]
            },
        },
    },
}


def with_bodies(document: dict) -> dict:
    document = copy.deepcopy(document)
    for operations in document["paths"].values():
        if "post" in operations:
            content = {"application/json": {"schema": BODY}}
            operations["post"]["requestBody"] = {"required": True, "content": content}
    return document


def check(answer) -> None:
    """Hold an answer against what every door promises."""
    asked = f"{answer.request.method} {answer.request.url} {answer.request.content[:500]!r}"
    said = f"{asked} -> {answer.status_code} {answer.text[:300]}"
    assert answer.status_code < 500, said
    if answer.status_code >= 400:
        ERROR.validate(answer.json())
        assert not LEAK.search(answer.text), said
    elif answer.headers.get("content-type") == "application/json":
        json.loads(answer.text, parse_constant=pytest.fail)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
async def test_whatever_is_asked_is_answered_in_form(mode, app, http):
    schema = schemathesis.openapi.from_dict(with_bodies(app.openapi()))
    loop, tried = asyncio.get_running_loop(), []

    async def ask(case):
        body = case.body if isinstance(case.body, bytes) else json.dumps(case.body, default=str)
        answer = await http.request(
            case.method,
            case.formatted_path,
            params=case.query if isinstance(case.query, dict) else {},
            content=body if case.method == "POST" else None,
            headers={"content-type": "application/json"} if case.method == "POST" else {},
        )
        check(answer)
        tried.append(case.operation.path)

    def ask_all():
        for result in schema.get_all_operations():
            operation = result.ok()
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
                continue  # nothing can be asked badly

            @settings(
                max_examples=EXAMPLES,
                derandomize=True,
                deadline=None,
                database=None,
                phases=[Phase.generate],  # to shrink what failed takes longer than to read it
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode))
            def asked(case):
                asyncio.run_coroutine_threadsafe(ask(case), loop).result(30)

            asked()

    await asyncio.to_thread(ask_all)

    assert len(set(tried)) >= (50 if mode is GenerationMode.POSITIVE else 12)
