"""What MCP's tools are called and take: the words by which an agent chooses one and fills it in.

Nothing is checked by it: the fields are read where every JSON door reads them.
"""

from typing import Any, get_args

import mcp_types as types

from fluxline.ability import MOST_LORAS, STRENGTH, STRONGEST
from fluxline.request import SEED_LIMIT, ImageFormat, SamplerName, ScheduleName
from fluxline.server.body import LARGEST_SCALE, MOST_STEPS, PROMPT_LIMIT

INSTRUCTIONS = (
    "Draws pictures from words with FLUX. generate_image answers with the pictures and their "
    "links; with wait false it answers at once with an id for get_job and cancel_job. "
    "list_models tells the sizes, steps and guidance that are served."
)
FORMAT: ImageFormat = "webp"
"""Of pictures, unless another is asked for: small enough to be shown in a conversation."""

_JOB_ID = {"job_id": {"type": "string", "description": "as generate_image gave it"}}
_LORA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "strength": {
            "type": "number",
            "minimum": -STRONGEST,
            "maximum": STRONGEST,
            "description": "1 if left out, as it was trained; 0 is none of it",
        },
    },
    "required": ["name"],
}


def tools(max_n: int) -> list[types.Tool]:
    """List them, for a server that draws at most max_n pictures a call."""
    return [
        types.Tool(
            name="generate_image",
            title="Draw pictures",
            description="Draw pictures of a prompt, from a picture if one is given. Answers with "
            "them, their seeds and links.",
            input_schema=_schema(_fields(max_n), "prompt"),
            annotations=types.ToolAnnotations(destructive_hint=False, open_world_hint=False),
        ),
        types.Tool(
            name="list_models",
            title="List models",
            description="Tell what can draw here: sizes, steps, guidance, samplers of each model; "
            "of one that was never loaded its name alone. It is loaded when it is asked to draw.",
            input_schema=_schema({}),
            annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
        ),
        types.Tool(
            name="get_job",
            title="Look at a job",
            description="Tell where a job stands; when it is done, answer with its pictures.",
            input_schema=_schema(_JOB_ID, "job_id"),
            annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
        ),
        types.Tool(
            name="cancel_job",
            title="Cancel a job",
            description="Stop drawing a job that is not over.",
            input_schema=_schema(_JOB_ID, "job_id"),
            annotations=types.ToolAnnotations(idempotent_hint=True, open_world_hint=False),
        ),
    ]


def _fields(max_n: int) -> dict[str, Any]:
    return {
        **_of_the_picture(max_n),
        **_of_the_drawing(),
        **_of_what_is_drawn_on(),
        **_of_the_answer(max_n),
    }


def _of_the_picture(max_n: int) -> dict[str, Any]:
    """What is drawn, how large, and how often."""
    return {
        "prompt": {"type": "string", "maxLength": PROMPT_LIMIT, "description": "what to draw"},
        "size": {
            "type": "string",
            "description": "WIDTHxHEIGHT in px, like 1024x768; the model's own if left out",
        },
        "width": {"type": "integer", "minimum": 1, "description": "px, in place of size"},
        "height": {"type": "integer", "minimum": 1, "description": "px, in place of size"},
        "n": {"type": "integer", "minimum": 1, "maximum": max_n, "description": "pictures"},
        "seed": {
            "type": "integer",
            "minimum": -1,
            "maximum": SEED_LIMIT - 1,
            "description": "the same seed draws the same; random if left out, and told",
        },
    }


def _of_the_drawing() -> dict[str, Any]:
    """By whom it is drawn, and how."""
    return {
        "model": {"type": "string", "description": "one of list_models; the first if left out"},
        "loras": {
            "type": "array",
            "maxItems": MOST_LORAS,
            "items": _LORA,
            "description": "adapters that act on the picture; those that the server applies if "
            "left out, none if empty",
        },
        "steps": {
            "type": "integer",
            "minimum": 1,
            "maximum": MOST_STEPS,
            "description": "more are slower and finer; the model's own if left out",
        },
        "guidance": {
            "type": "number",
            "minimum": 0,
            "maximum": LARGEST_SCALE,
            "description": "how closely to follow the prompt, for models that have it",
        },
        "negative_prompt": {
            "type": "string",
            "maxLength": PROMPT_LIMIT,
            "description": "what not to draw; acts only with cfg_scale above 1",
        },
        "cfg_scale": {
            "type": "number",
            "minimum": 0,
            "maximum": LARGEST_SCALE,
            "description": "weight against negative_prompt; above 1 drawing takes twice as long",
        },
        "parallel": {
            "type": "string",
            "description": "where several devices draw together: piflux, distrifusion or "
            "pipefusion, faster and not quite the same picture; exact if left out",
        },
        "sampler": {"type": "string", "enum": list(get_args(SamplerName))},
        "schedule": {"type": "string", "enum": list(get_args(ScheduleName))},
    }


def _of_what_is_drawn_on() -> dict[str, Any]:
    """The pictures that it is drawn from."""
    return {
        "image": {
            "type": "string",
            "description": "a picture to draw on: base64, a data: URL, or an https: URL where "
            "the server may fetch it; the size follows its shape unless given",
        },
        "mask": {
            "type": "string",
            "description": "a picture of the shape of image: only what is transparent in it or, "
            "where nothing is, what is white is drawn anew",
        },
        "expand": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0},
            "minItems": 4,
            "maxItems": 4,
            "description": "draw beside image: px at its left, top, right, bottom",
        },
        "ref_images": {
            "type": "array",
            "items": {"type": "string"},
            "description": "pictures to look at beside image, for models that do",
        },
        "strength": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": f"how much of image is drawn anew; if left out {STRENGTH}, with mask 1",
        },
    }


def _of_the_answer(max_n: int) -> dict[str, Any]:
    """What is answered, when, and as what."""
    return {
        "top_k": {
            "type": "integer",
            "minimum": 1,
            "maximum": max_n,
            "description": "of n pictures, keep so many that fit the prompt best",
        },
        "output_format": {
            "type": "string",
            "enum": list(get_args(ImageFormat)),
            "description": f"{FORMAT} if left out; large png are given as links only",
        },
        "deadline_s": {
            "type": "number",
            "minimum": 0,
            "description": "refuse at once what would take longer, in seconds",
        },
        "wait": {
            "type": "boolean",
            "description": "false: answer at once with a job's id, and draw on; default true",
        },
        "strict": {"type": "boolean", "description": "refuse unknown fields; default false"},
    }


def _schema(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}
