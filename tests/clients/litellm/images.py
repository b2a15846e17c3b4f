"""LiteLLM, as a program uses it. Prints what it saw as one JSON object."""

import asyncio
import base64
import io
import json
import sys

import litellm
import openai

url, key = sys.argv[1:]
where = {"api_base": f"{url}/v1", "api_key": key, "size": "160x96"}
fox = {"model": "openai/mini", "prompt": "a red fox", **where}


def failure_of(call, **asked):
    try:
        call(**{**fox, **asked})
    except openai.APIStatusError as error:  # of which all of LiteLLM's are
        name = type(error).__name__
        return {"name": name, "status": error.status_code, "message": str(error)}
    raise AssertionError("it should have been refused")


async def together():
    calls = [litellm.aimage_generation(**fox, seed=seed) for seed in (1, 2)]
    return [answer.data[0].b64_json for answer in await asyncio.gather(*calls)]


draw = litellm.image_generation
two = draw(**fox, n=2, quality="low")
source = two.data[0].b64_json


def edited(**asked):
    image = io.BytesIO(base64.b64decode(source))
    return litellm.image_edit(**{**fox, "prompt": "a blue bird", **asked}, image=image)


print(
    json.dumps(
        {
            "images": [datum.b64_json for datum in two.data],
            "usage": two.usage.total_tokens,
            "seeded": [draw(**fox, seed=7, steps=4).data[0].b64_json for _ in range(2)],
            "by_vllms_name": draw(**{**fox, "model": "hosted_vllm/mini"}, seed=7, steps=4)
            .data[0]
            .b64_json,
            "together": asyncio.run(together()),
            "edited": [edited(seed=7, strength=s).data[0].b64_json for s in (0.2, 0.9)],
            "failures": {
                "n": failure_of(draw, n=99),
                "model": failure_of(draw, model="openai/flux-pro"),
                "key": failure_of(draw, api_key="client3"),
                "image": failure_of(litellm.image_edit, image=io.BytesIO(b"\x89PNG")),
                "images": failure_of(
                    litellm.image_edit, image=[io.BytesIO(b"1"), io.BytesIO(b"2")]
                ),
            },
        }
    )
)
