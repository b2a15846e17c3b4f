"""Small answers by which clients find out what is here: LocalAI's, Ollama's and our own form."""

from typing import Any

from fastapi import APIRouter

from fluxline.service import Service, Standing

PROTOCOLS = ["openai", "jobs", "batch", "single", "a1111", "bfl"]


def discovery_router(service: Service, *, max_n: int, max_batch: int, has_mcp: bool) -> APIRouter:
    """Make the routes of a service. They must stand before `/v1/models/{name}`."""
    router = APIRouter(tags=["discovery"])

    @router.get("/v1/capabilities")
    async def capabilities() -> dict[str, Any]:
        """Tell all that a page or a program must know to ask well."""
        return {
            "models": [model(one) for one in service.roster.all],
            "presets": list(service.roster.presets),
            "limits": {"n": max_n, "batch": max_batch, "queue": service.queue_limit},
            "features": {
                "stream": True,
                "jobs": True,
                "top_k": True,
                "cancel": True,
                "img2img": True,
                "mask": True,
                "lora": True,
            },
            "protocols": [*PROTOCOLS, "mcp"] if has_mcp else PROTOCOLS,
        }

    @router.get("/v1/models/capabilities")
    @router.get("/models/capabilities", include_in_schema=False)
    async def of_models() -> dict[str, Any]:
        """List models with what they can do, as LocalAI does."""
        data = [
            {"id": one.name, "object": "model", "capabilities": ["image"]}
            for one in service.roster.all
        ]
        return {"object": "list", "data": data}

    @router.get("/api/tags")
    async def tags() -> dict[str, Any]:
        """List models as Ollama does."""
        return {
            "models": [
                {
                    "name": one.name,
                    "model": one.name,
                    "capabilities": ["image"],
                    "details": {
                        "family": one.info and one.info.family,
                        "format": "safetensors",
                    },
                }
                for one in service.roster.all
            ]
        }

    return router


def model(one: Standing) -> dict[str, Any]:
    """Spell a profile with what may be asked of it, as far as its model was loaded ever."""
    told: dict[str, Any] = {
        "name": one.name,
        "model": one.model,
        "state": one.state,
        "reason": one.reason or None,
    }
    if (info := one.info) is None:
        return told
    return told | {
        "family": info.family,
        "size": {
            "default": [info.native_width, info.native_height],
            "most": [info.max_width, info.max_height],
        },
        "steps": {"default": info.default_steps, "most": info.max_steps},
        "guidance": info.guidance,
        "cfg_scale": info.cfg_scale,
        "prompt_tokens": info.text_length,
        "pictures": {
            "references": info.references,
            "fills": info.fills,
            "needed": info.needs_picture,
        },
        "samplers": list(info.samplers),
        "schedules": list(info.schedules),
        "device": info.device,
        "dtype": info.dtype,
        "backend": info.backend,
        "ranks": info.ranks,
        "parallel": list(info.approximations),
        "precision": info.precision,
        "notes": list(info.notes),
    }
