"""A line on each field that bodies have, for who reads the OpenAPI document; read by `outline`.

Names, types and ranges are not here: they are where the fields are read.
"""

import re
from typing import Any, TypeAlias

from fluxline.ability import MOST_LORAS, STRENGTH, STRONGEST

Schema: TypeAlias = dict[str, Any]  # Any: JSON

NO_EFFECT = "taken and without effect here"
PICTURE: Schema = {
    "anyOf": [
        {"type": "string", "description": "base64, a data: URL, or an address"},
        {
            "type": "object",
            "properties": {"image_url": {"type": "string"}},
            "required": ["image_url"],
        },
    ]
}
PICTURES: Schema = {"anyOf": [*PICTURE["anyOf"], {"type": "array", "items": PICTURE}]}
LORA: Schema = {
    "anyOf": [
        {"type": "string", "description": "its name"},
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "strength": {"type": "number", "minimum": -STRONGEST, "maximum": STRONGEST},
            },
            "required": ["name"],
        },
    ]
}
SHAPES: dict[str, Schema] = {
    "image": PICTURES,
    "input_image": PICTURES,
    **{f"input_image_{number}": PICTURE for number in range(2, 11)},
    "init_images": PICTURES,
    "ref_images": PICTURES,
    "mask": PICTURES,
    "include_init_images": {"type": "boolean"},
    "expand": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4},
    "loras": {"anyOf": [*LORA["anyOf"], {"type": "array", "items": LORA, "maxItems": MOST_LORAS}]},
}
"""Of fields that nothing but their reader tells."""
FILES = {
    "anyOf": [
        {"type": "string", "format": "binary"},
        {"type": "array", "items": {"type": "string", "format": "binary"}},
    ]
}
"""What a form has in place of PICTURES."""
WORDS = {
    # what is drawn, how large, and how often
    "prompt": "what to draw",
    "negative_prompt": "what not to draw; acts only beside true guidance",
    "n": "pictures; 1 if left out",
    "nof_images": "pictures",
    "batch_size": "pictures, times n_iter; 1 if left out",
    "n_iter": "times batch_size; 1 if left out",
    "size": "WIDTHxHEIGHT in px, or auto; the model's own, or the picture's shape, if left out",
    "width": "px",
    "height": "px",
    "aspect_ratio": "the shape, like 16:9, where no side is given",
    "seed": "of the first picture; any, and told, if left out",
    # by whom, and how
    "model": "who draws; the first of /v1/models if left out",
    "profile": "who draws, by the name of a profile",
    "preset": "a bundle of parameters; what is given beside it wins",
    "quality": "a preset by OpenAI's words; auto is none",
    "priority": "0 if left out; more goes first",
    "deadline_s": "refuse at once what would take longer, in seconds",
    "steps": "more are slower and finer; the model's own if left out",
    "num_inference_steps": "more are slower and finer",
    "guidance": "how closely to follow the prompt; the model's own if left out",
    "guidance_scale": "how closely to follow the prompt",
    "distilled_cfg_scale": "how closely to follow the prompt, before cfg_scale",
    "cfg_scale": "weight against negative_prompt, or guidance where the door has it so",
    "true_cfg_scale": "weight against negative_prompt; above 1 drawing takes twice as long",
    "sampler": "the solver; euler if left out",
    "sampler_name": "the solver by its title, like DPM++ 2M; Euler if left out",
    "schedule": "the noise levels; simple if left out",
    "scheduler": "the noise levels; simple if left out",
    "eta": "noise that ddim adds at each step; 0 if left out",
    "loras": "adapters that act; those that the server applies if left out, none if empty",
    "lora_name": "an adapter that acts",
    "lora_weight": "of lora_name; 1 if left out",
    "parallel": "how ranks approximate a picture, like piflux,sync=2; exact if left out",
    "gpus": "engines to spread the pictures over; 1 if left out",
    # from pictures
    "image": "a picture to start from, or to read",
    "input_image": "a picture to start from, or to look at, for models that do",
    "init_images": "the picture to start from",
    "ref_images": "pictures to look at, for models that do; without image, the first is drawn on",
    "mask": "of the image's shape: what of it is drawn anew",
    "expand": "px to draw beside the image: left, top, right, bottom",
    "left": "px to draw at the left of the picture",
    "top": "px to draw above the picture",
    "right": "px to draw at the right of the picture",
    "bottom": "px to draw below the picture",
    "strength": f"how much is drawn anew; {STRENGTH} if left out, with a mask 1",
    "denoising_strength": f"how much is drawn anew; {STRENGTH} if left out",
    "resize_mode": "0 stretches, 1 crops, 2 fills; 0 if left out",
    "mask_blur": "px; 4 if left out",
    "mask_blur_x": "px across, before mask_blur",
    "mask_blur_y": "px down, before mask_blur",
    "inpainting_fill": "0: what is masked begins as the colours around it; else as it is",
    "inpainting_mask_invert": "1: what is not masked is redrawn",
    "include_init_images": "say the pictures again in the answer; false if left out",
    # what is answered, when, and as what
    "output_format": "png if left out; at BFL's doors and for a batch jpeg",
    "output_compression": "of jpeg, webp and avif; 100 is the best",
    "background": "opaque, whatever is said; transparent is refused",
    "response_format": "url: a link that expires; b64_json if left out",
    "top_k": "keep so many that fit the prompt best",
    "stream": "tell of each picture when it is ready; false if left out",
    "partial_images": "previews of each picture in a stream; 0 if left out",
    "preview_every": "steps between two previews; none if left out",
    "strict": "refuse what would be ignored; false if left out",
    "webhook_url": "whom to tell when the job is over",
    "webhook_secret": "what that is signed with",
    # of a batch
    "diversity": "what varies from picture to picture",
    "samplers": "solvers to choose from",
    "nof_steps": "numbers of steps to choose from",
    "cfg_scales": "guidance to choose from",
    "seeds": "mix if left out",
    "base_seed": "makes the plan the same again",
    # of the AUTOMATIC1111 web UI
    "override_settings": "its settings, of which one acts",
    "sd_model_checkpoint": "who draws; the first of /v1/models if left out",
}


def said_of(field: str, what: Schema) -> str:
    """The line on a field; those that are numbered have one together."""
    if not what:  # nobody looks at its value
        return NO_EFFECT
    return WORDS.get(field) or WORDS[re.sub(r"_[0-9]+$", "", field)]
