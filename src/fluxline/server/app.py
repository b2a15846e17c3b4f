"""The HTTP application: routes, error handlers and middleware put together around a service."""

from collections.abc import AsyncGenerator, Collection, Mapping
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
from fluxline.server.bodies import describe, readings_of
from fluxline.server.choice import Ports
from fluxline.server.dialects.a1111_routes import a1111_router
from fluxline.server.dialects.admin_routes import admin_router
from fluxline.server.dialects.bfl_routes import bfl_router
from fluxline.server.dialects.discovery_routes import discovery_router
from fluxline.server.dialects.generate_routes import generate_router
from fluxline.server.dialects.jobs_routes import jobs_router
from fluxline.server.dialects.mcp_routes import McpDoor, is_installed, mcp_door
from fluxline.server.dialects.openai_routes import openai_router
from fluxline.server.dialects.queue_routes import queue_router
from fluxline.server.dialects.webhooks import Webhooks
from fluxline.server.health import health_router
from fluxline.server.links import Links, files_router
from fluxline.server.metrics import metrics_router
from fluxline.server.middleware import BodyLimit, Exchange
from fluxline.server.origin import Gate
from fluxline.server.overview import overview_router
from fluxline.server.traced import Traced
from fluxline.server.uploads import Uploads
from fluxline.service import Service
from fluxline.tracing import OFF, Tracing


def create_app(
    service: Service,
    links: Links,
    webhooks: Webhooks,
    uploads: Uploads,
    *,
    max_n: int,
    max_batch: int = 64,
    body_limit_bytes: int,
    upload_limit_bytes: int,
    ring: KeyRing | None = None,
    opens_metrics: bool = True,
    has_grpc: bool = False,
    pages: Collection[str] = (),
    tracing: Tracing = OFF,
    by_port: Mapping[int, str] | None = None,
) -> FastAPI:
    """Make the application of a service. Starts nothing and listens nowhere.

    ring: the keys that are good; None: no key is asked for. opens_metrics: not for the metrics.
    has_grpc: gRPC is served beside this. pages: origins whose pages may call, "*" for all.
    tracing: whom each exchange is told to. by_port: profiles of who names none, by the ports that
    callers come by.
    """
    mcp = mcp_door(service, links, uploads, max_n=max_n)
    app = _empty(mcp, uploads)
    describe(
        app,
        lambda: readings_of(service.roster.presets, webhooks, max_n=max_n, max_batch=max_batch),
    )
    _guard(
        app,
        ring=ring,
        opens_metrics=opens_metrics,
        body_limit_bytes=body_limit_bytes,
        upload_limit_bytes=upload_limit_bytes,
        base_url=links.base_url,
        pages=pages,
        tracing=tracing,
    )
    if by_port:
        app.add_middleware(Ports, by_port=by_port)
    for router in (
        health_router(service),
        discovery_router(service, max_n=max_n, max_batch=max_batch, has_mcp=is_installed()),
        openai_router(service, links, uploads, max_n=max_n),
        jobs_router(service, links, webhooks, uploads, max_n=max_n),
        generate_router(service, links, uploads, most=max_batch),
        a1111_router(service, uploads, max_n=max_n),
        bfl_router(service, links, uploads),
        queue_router(service, links, uploads),
        admin_router(service),
        metrics_router(service, has_grpc=has_grpc),
        files_router(links),
        overview_router(app.openapi),
    ):
        app.include_router(router)
    app.router.routes.append(Route("/mcp", mcp))
    return app


def _empty(mcp: McpDoor, uploads: Uploads) -> FastAPI:
    """An application without routes, which closes what it opened when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await mcp.close()
            await uploads.close()

    return FastAPI(
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
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        lifespan=lifespan,
    )


def _guard(
    app: FastAPI,
    *,
    ring: KeyRing | None,
    opens_metrics: bool,
    body_limit_bytes: int,
    upload_limit_bytes: int,
    base_url: str,
    pages: Collection[str],
    tracing: Tracing,
) -> None:
    """Put what every exchange passes before the routes, from the inside out."""
    app.add_middleware(
        BodyLimit, limit_bytes=body_limit_bytes, with_picture_bytes=upload_limit_bytes
    )
    if ring is not None:
        app.add_middleware(Auth, ring=ring, opens_metrics=opens_metrics)
    app.add_middleware(Gate, base_url=base_url, pages=pages, asks_for_keys=ring is not None)
    app.add_middleware(Exchange)
    if tracing.is_on:
        app.add_middleware(Traced, tracing=tracing)
    if pages:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=pages,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "location"],
        )
