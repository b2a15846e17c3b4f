"""The HTTP application: routes, error handlers and middleware put together around a service."""

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from fluxline.errors import FluxlineError
from fluxline.jobs import KeyRing
from fluxline.server import envelope
from fluxline.server.auth import Auth
from fluxline.server.dialects.a1111_routes import a1111_router
from fluxline.server.dialects.admin_routes import admin_router
from fluxline.server.dialects.bfl_routes import bfl_router
from fluxline.server.dialects.discovery_routes import discovery_router
from fluxline.server.dialects.generate_routes import generate_router
from fluxline.server.dialects.jobs_routes import jobs_router
from fluxline.server.dialects.mcp_routes import is_installed, mcp_door
from fluxline.server.dialects.openai_routes import openai_router
from fluxline.server.dialects.queue_routes import queue_router
from fluxline.server.dialects.webhooks import Webhooks
from fluxline.server.health import health_router
from fluxline.server.links import Links, files_router
from fluxline.server.metrics import metrics_router
from fluxline.server.middleware import BodyLimit, Exchange
from fluxline.server.origin import Gate
from fluxline.server.overview import overview_router
from fluxline.service import Service


def create_app(
    service: Service,
    links: Links,
    webhooks: Webhooks,
    *,
    max_n: int,
    max_batch: int = 64,
    body_limit_bytes: int,
    ring: KeyRing | None = None,
    opens_metrics: bool = True,
    has_grpc: bool = False,
    pages: Collection[str] = (),
) -> FastAPI:
    """Make the application of a service. Starts nothing and listens nowhere.

    ring: the keys that are good; None: no key is asked for. opens_metrics: not for the metrics.
    has_grpc: gRPC is served beside this. pages: origins whose pages may call, "*" for all.
    """
    mcp = mcp_door(service, links, max_n=max_n)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await mcp.close()

    app = FastAPI(
        title="Fluxline",
        version=version("fluxline"),
        docs_url=None,  # the stock pages load scripts from elsewhere
        redoc_url=None,
        exception_handlers={
            FluxlineError: envelope.on_fluxline_error,
            HTTPException: envelope.on_http_exception,
            RequestValidationError: envelope.on_validation_error,
        },
        responses=envelope.DOCUMENTED,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_middleware(BodyLimit, limit_bytes=body_limit_bytes)
    if ring is not None:
        app.add_middleware(Auth, ring=ring, opens_metrics=opens_metrics)
    app.add_middleware(Gate, base_url=links.base_url, pages=pages, asks_for_keys=ring is not None)
    app.add_middleware(Exchange)
    if pages:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=pages,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "location"],
        )  # added last: outermost
    app.include_router(health_router(service))
    app.include_router(
        discovery_router(service, max_n=max_n, max_batch=max_batch, has_mcp=is_installed())
    )
    app.include_router(openai_router(service, links, max_n=max_n))
    app.include_router(jobs_router(service, links, webhooks, max_n=max_n))
    app.include_router(generate_router(service, links, most=max_batch))
    app.include_router(a1111_router(service, max_n=max_n))
    app.include_router(bfl_router(service, links))
    app.include_router(queue_router(service, links))
    app.include_router(admin_router(service))
    app.include_router(metrics_router(service, has_grpc=has_grpc))
    app.include_router(files_router(links))
    app.include_router(overview_router(app.openapi))
    app.router.routes.append(Route("/mcp", mcp))
    return app
