"""What serves, put together: what it stands on, and what stands on that.

Nothing here waits or draws yet; its life from start to end is the business of `serve`.
"""

import contextlib
import logging
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from fastapi import FastAPI

from fluxline.errors import ConfigError
from fluxline.fleet.budget import Budget
from fluxline.fleet.local import LocalReplica
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.pool import Pool
from fluxline.fleet.process import WorkerCommand
from fluxline.fleet.router import Router
from fluxline.fleet.watch import Patience
from fluxline.jobs import Database, JobStore, KeyRing, WebhookStore
from fluxline.loras import LoraFolder
from fluxline.profiles import GIB, Profile
from fluxline.server.app import create_app
from fluxline.server.connection import listen
from fluxline.server.dialects.webhooks import Webhooks
from fluxline.server.links import Links
from fluxline.server.origin import is_loopback
from fluxline.server.outside import Outside
from fluxline.server.reader import Reader
from fluxline.server.uploads import Uploads
from fluxline.service import Loras, Service, lacks
from fluxline.settings import Settings
from fluxline.storage import Pictures, open_pictures
from fluxline.tracing import OFF, Tracing, is_wanted

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a server stands on."""

    listeners: Mapping[socket.socket, str]  # each with the profile of who names none; "": as usual
    database: Database
    pictures: Pictures
    ring: KeyRing | None  # None: no key is asked for
    tracing: Tracing


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What stands on it, and does not work yet."""

    router: Router
    service: Service
    webhooks: Webhooks
    uploads: Uploads
    app: FastAPI


def prepare(settings: Settings, stack: contextlib.ExitStack) -> Ground:
    """Open what the server stands on, before a model is loaded. Raises ConfigError, NotReady."""
    loras = open_loras(settings)
    for profile in settings.served():
        for lack in lacks(profile, loras):
            _log.warning("profile %s: %s", profile.name, lack)
    listener = stack.enter_context(listen(settings.host, settings.port))
    listeners = {listener: ""} | {
        stack.enter_context(listen(settings.host, port)): profile
        for port, profile in settings.listen.items()
    }
    port = listener.getsockname()[1]
    database = Database(settings.database_url(port))
    stack.callback(database.close)
    database.own()
    pictures = open_pictures(
        settings.storage or str(settings.data_folder(port) / "pictures"),
        public_url=settings.storage_url or None,
    )
    ring = _ring(settings, database)
    if settings.grpc_port is not None and ring is None:
        raise ConfigError(
            "gRPC needs a key: make one with `fluxline keys create NAME`, or set API_KEYS"
        )
    tracing = _tracing(settings.otlp_endpoint)
    stack.callback(tracing.close)
    return Ground(
        listeners=listeners, database=database, pictures=pictures, ring=ring, tracing=tracing
    )


def open_loras(settings: Settings) -> Loras:
    """The folder of LoRAs, as the doors know it. Raises ConfigError."""
    return Loras(LoraFolder(settings.lora_folder()), fetches=settings.lora_hub)


def build(settings: Settings, ground: Ground, engine: str) -> House:
    """Build what serves, on one event loop. engine: the module:factory that the workers open."""
    database, pictures = ground.database, ground.pictures
    router = _router(settings, engine)
    service = Service(
        router,
        JobStore(database),
        pictures,
        queue_limit=settings.queue_limit,
        queue_s=settings.queue_s,
        window=settings.in_flight,
        keep_days=settings.keep_days,
        keep_bytes=None if settings.keep_gb is None else int(settings.keep_gb * 2**30),
        holder=f"{uuid.uuid4()}" if database.is_shared else "local",
        tracing=ground.tracing,
        loras=open_loras(settings),
        aliases=settings.aliases,
        presets=settings.named_presets(),
    )
    links = Links(pictures, database.secret, base_url=settings.public_url)
    webhooks = Webhooks(WebhookStore(database), links, Outside(settings.webhook_hosts))
    uploads = Uploads(
        Outside(settings.image_hosts, option="--image-hosts"),
        Reader(),
        most_bytes=settings.upload_limit_bytes,
    )
    app = create_app(
        service,
        links,
        webhooks,
        uploads,
        max_n=settings.max_n,
        max_batch=settings.max_batch,
        body_limit_bytes=settings.body_limit_bytes,
        upload_limit_bytes=settings.upload_limit_bytes,
        ring=ground.ring,
        has_grpc=settings.grpc_port is not None,
        pages=[page.strip().rstrip("/") for page in settings.cors.split(",") if page.strip()],
        opens_metrics=settings.open_metrics or is_loopback(settings.host),
        tracing=ground.tracing,
        by_port={one.getsockname()[1]: name for one, name in ground.listeners.items() if name},
    )
    return House(router=router, service=service, webhooks=webhooks, uploads=uploads, app=app)


def _router(settings: Settings, engine: str) -> Router:
    """The profiles, which share what memory there is for them."""
    limit_gb = settings.memory_gb
    budget = Budget(None if limit_gb is None else int(limit_gb * GIB))
    members = [
        OnDemand(profile, partial(_pool, profile, settings, engine), budget=budget)
        for profile in settings.served()
    ]
    budget.tenants = members
    return Router(members)


def _pool(profile: Profile, settings: Settings, engine: str) -> Pool:
    """The replicas of a profile."""
    patience = Patience(stuck_s=settings.stuck_s or None)
    commands = [command_of(profile, settings, member) for member in range(profile.members)]
    return Pool(
        [LocalReplica(replace(command, engine=engine), patience=patience) for command in commands]
    )


def command_of(profile: Profile, settings: Settings, member: int = 0) -> WorkerCommand:
    """What starts one of a profile's workers."""
    return WorkerCommand(
        model=profile.model,
        device=profile.device_of(member),
        precision=profile.precision,
        parallel=replace(profile.degrees, data=1).spelt,
        memory=profile.memory,
        weights_gb=profile.weights_gb,
        loras=str(settings.lora_folder()),
        lora_bytes=int(settings.lora_gb * 2**30),
        fetches_loras=settings.lora_hub,
        member=member,
        members=profile.members,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )


def _tracing(endpoint: str) -> Tracing:
    """Whom traces are told to, if anybody asks for them. Raises ConfigError."""
    if not is_wanted(endpoint):
        if endpoint:
            _log.warning("no traces: OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER forbids them")
        return OFF
    try:
        from fluxline.otel import open_tracing
    except ImportError as exc:
        lacks = "OpenTelemetry is not installed: pip install 'fluxline[otel]'"
        if endpoint:
            raise ConfigError(lacks) from exc
        # A variable may be meant for everybody on a machine.
        _log.warning("no traces, though an OTEL_* variable asks for them: %s", lacks)
        return OFF
    try:
        return open_tracing(endpoint)
    except ConfigError as exc:
        if endpoint:
            raise
        _log.warning("no traces: %s", exc.message)
        return OFF


def _ring(settings: Settings, database: Database) -> KeyRing | None:
    """The keys that are good; None if there are none, and none are needed. Raises ConfigError."""
    given = [key.strip() for key in settings.api_keys.split(",") if key.strip()]
    ring = KeyRing(database, given=given)
    if not ring.is_empty:
        return ring
    if not is_loopback(settings.host) and not settings.insecure:
        raise ConfigError(
            f"listening on {settings.host} lets others in, and there is no key: make one with "
            "`fluxline keys create NAME`, set API_KEYS, or say --insecure"
        )
    return None
