"""What each door's body may hold, for the OpenAPI document: found by reading outlines of them."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_args

from fastapi import FastAPI, Request

from fluxline.ability import ModelInfo
from fluxline.profiles import Preset
from fluxline.request import SamplerName, ScheduleName
from fluxline.server.body import warnings_of
from fluxline.server.choice import Choice, check_choice
from fluxline.server.dialects import a1111, batch, bfl_routes, jobs_routes, openai, single
from fluxline.server.dialects.a1111_facts import read_base64, read_checkpoint
from fluxline.server.dialects.admin_routes import read_lora, read_which
from fluxline.server.dialects.openai_routes import check_edit
from fluxline.server.dialects.webhooks import Webhooks
from fluxline.server.fields import Fields
from fluxline.server.outline import Reading, Schema, outlined
from fluxline.server.uploads import find
from fluxline.server.words import FILES, PICTURES

Document: TypeAlias = dict[str, Any]  # Any: JSON
Readings: TypeAlias = Mapping[str, tuple[Reading, ...]]

ANY = ModelInfo(
    name="any",
    family="any",
    native_width=1024,
    native_height=1024,
    max_width=2048,
    max_height=2048,
    default_steps=4,
    max_steps=50,
    guidance=3.5,
    text_length=512,
    dtype="float32",
    device="cpu",
    samplers=get_args(SamplerName),
    schedules=get_args(ScheduleName),
    needs_picture=True,
)
"""A model that reads all that any reads."""
CHOICE = Choice(profile="any", info=ANY, preset=None, bundle=Preset(), quality="medium")
FORMS = frozenset({"/v1/images/edits", "/v1/jobs"})
"""Doors that take a form, too."""


def describe(app: FastAPI, readings: Callable[[], Readings]) -> None:
    """Have the OpenAPI document of an application name its bodies, once it is asked for."""

    def document() -> Document:
        if app.openapi_schema is None:
            outlines = {path: list(map(outlined, kinds)) for path, kinds in readings().items()}
            bodies = {path: _body(path, kinds) for path, kinds in outlines.items()}
            said, app.openapi_schema = FastAPI.openapi(app), None  # which it has set already
            for path, body in bodies.items():
                said["paths"][path]["post"]["requestBody"] = body
            app.openapi_schema = said
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI has it


def readings_of(
    presets: Mapping[str, Preset], webhooks: Webhooks, *, max_n: int, max_batch: int
) -> Readings:
    """What reads the body of each door, by its path; two where a body is one of two kinds.

    presets: those that may be named. max_n, max_batch: pictures of a request, and of a batch.
    """
    doors = _Doors(presets, webhooks, max_n=max_n, max_batch=max_batch)
    return {
        "/v1/images/generations": (doors.generation,),
        "/v1/images/edits": (doors.edit,),
        "/v1/jobs": (doors.job,),
        "/generate": (doors.single, doors.batch),
        "/{profile}/generate": (doors.single, doors.batch),
        "/v1/batches/generate": (doors.batch,),
        "/submit-request": (doors.single,),
        "/sdapi/v1/txt2img": (doors.txt2img,),
        "/sdapi/v1/img2img": (doors.img2img,),
        "/sdapi/v1/options": (read_checkpoint,),
        "/sdapi/v1/png-info": (read_base64,),
        "/v1/flux-{name}": (doors.task,),
        "/load-model": (read_which,),
        "/unload-model": (read_which,),
        "/apply-lora": (read_lora,),
    }


class _Doors:
    """Reads a body as each of the doors that draw does, and draws nothing."""

    def __init__(
        self, presets: Mapping[str, Preset], webhooks: Webhooks, *, max_n: int, max_batch: int
    ) -> None:
        self._presets, self._webhooks = presets, webhooks
        self._max_n, self._max_batch = max_n, max_batch

    def generation(self, fields: Fields) -> None:
        check_choice(fields, self._presets)
        openai.read(fields, CHOICE, max_n=self._max_n, request_id="")
        find(fields)

    def edit(self, fields: Fields) -> None:
        check_edit(fields)
        self.generation(fields)

    def job(self, fields: Fields) -> None:
        check_choice(fields, self._presets)
        wanted, _ = jobs_routes.read(fields, CHOICE, max_n=self._max_n)
        self._webhooks.read(fields, Request({"type": "http"}))
        warnings_of(fields, wanted)
        find(fields)

    def single(self, fields: Fields) -> None:
        check_choice(fields, self._presets)
        single.read(fields, CHOICE, request_id="")

    def batch(self, fields: Fields) -> None:
        check_choice(fields, self._presets)
        batch.read(fields, CHOICE, most=self._max_batch, request_id="")

    def txt2img(self, fields: Fields) -> None:
        a1111.refuse_pictures(fields)
        self._a1111(fields)

    def img2img(self, fields: Fields) -> None:
        a1111.need_pictures(fields)
        self._a1111(fields)

    def _a1111(self, fields: Fields) -> None:
        a1111.checkpoint_of(fields)
        check_choice(fields, self._presets)
        a1111.read(fields, CHOICE, max_n=self._max_n, request_id="")

    def task(self, fields: Fields) -> None:
        check_choice(fields, self._presets)
        bfl_routes.read(fields, CHOICE, "any")


def _body(path: str, kinds: list[Schema]) -> Document:
    """Spell a body; a form has files where JSON has pictures."""
    said = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    content = {"application/json": {"schema": said}}
    if path in FORMS:
        fields = {
            name: {**one, **FILES} if one.get("anyOf") == PICTURES["anyOf"] else one
            for name, one in kinds[0]["properties"].items()
        }
        content["multipart/form-data"] = {"schema": {**kinds[0], "properties": fields}}
    return {"required": any("required" in kind for kind in kinds), "content": content}
