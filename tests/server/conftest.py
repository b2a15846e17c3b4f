"""The application over a fake engine in this process: no socket, no worker."""

import asyncio
import contextlib
import re

import httpx
import pytest

from fluxline.ability import EngineStats
from fluxline.errors import NotReady
from fluxline.jobs import Database, JobStore, WebhookStore
from fluxline.loras import LoraFolder
from fluxline.server.app import create_app
from fluxline.server.dialects.webhooks import Webhooks
from fluxline.server.links import Links
from fluxline.server.outside import Outside
from fluxline.server.reader import Reader
from fluxline.server.uploads import Uploads
from fluxline.service import Loras, Service
from fluxline.storage import open_pictures
from tests.running import Running
from tests.service.conftest import alone
from tests.worker.fake_engine import FakeEngine

LIMITS = {"body_limit_bytes": 40_000, "upload_limit_bytes": 400_000}
ALIASES = {"dall-e-3": "default", "gpt-image-1": "default"}


class InlineReplica:
    """A replica whose engine runs in this very process."""

    def __init__(self, engine):
        self.engine = engine
        self.state, self.reason, self.restarts = "ready", "", 0

    @property
    def stats(self):
        return (EngineStats(forwards=2, rows=6, tokens=480, batch_tokens=120),)

    @property
    def ready(self):
        return int(self.state == "ready")

    @property
    def models(self):
        return self.engine.models if self.state == "ready" else ()

    def start(self): ...

    async def settled(self):
        return self.state

    async def ended(self): ...

    async def stop(self): ...

    def submit(self, request, publish):
        if self.state != "ready":
            raise NotReady(self.reason, retry_after_s=1)
        loop = asyncio.get_running_loop()
        self.engine.start(request, lambda event: loop.call_soon_threadsafe(publish, event))

    def cancel(self, request_id):
        self.engine.cancel(request_id)


@pytest.fixture
async def engine():
    engine = FakeEngine()
    yield engine
    engine.close()  # while the event loop its threads speak to is still there


@pytest.fixture
def replica(engine):
    return InlineReplica(engine)


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/jobs.sqlite3")
    yield database
    database.close()


@pytest.fixture
def pictures():
    return open_pictures("memory:")


@pytest.fixture
def lora_folder(tmp_path):
    """Where the server finds LoRAs; nothing lies there."""
    folder = tmp_path / "loras"
    folder.mkdir()
    return folder


@pytest.fixture
async def service(replica, database, pictures, lora_folder):
    service = Service(
        alone(replica),
        JobStore(database),
        pictures,
        queue_limit=64,
        aliases=ALIASES,
        loras=Loras(LoraFolder(lora_folder)),
    )
    await service.start()
    yield service
    await service.close()


@pytest.fixture
def links(pictures, database):
    return Links(pictures, database.secret)


@pytest.fixture
def webhooks(database, links):
    return Webhooks(WebhookStore(database), links, Outside(""))


class Stand:
    """Passes on to a part of the server that lives for one test, for what lives longer."""

    def __init__(self, part=None):
        self.part = part

    def __getattr__(self, name):
        return getattr(self.part, name)


@pytest.fixture(scope="session")
def stands():
    """Stands of a service, its links, its webhooks and its uploads."""
    return Stand(), Stand(Links(open_pictures("memory:"), b"")), Stand(), Stand()


@pytest.fixture(scope="session")
def standing_app(stands):
    """One application for all tests, as to make it takes longer than most of them do."""
    return create_app(*stands, max_n=4, **LIMITS)


class LastingReader(Reader):
    """One for all tests, though each closes what it opened."""

    def close(self):
        """Leave it to the end of them all."""


@pytest.fixture(scope="session")
def reader():
    reader = LastingReader()
    yield reader
    Reader.close(reader)


@pytest.fixture
def uploads(reader):
    return Uploads(Outside("", option="--image-hosts"), reader, most_bytes=200_000)


@pytest.fixture
def app(standing_app, stands, service, links, webhooks, uploads):
    for stand, part in zip(stands, (service, links, webhooks, uploads), strict=True):
        stand.part = part
    return standing_app


@pytest.fixture
async def http(app):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


class Listener:
    """Gives every request one answer; remembers what it heard."""

    def __init__(self, answer=b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"):
        self.answer, self.heard = answer, []

    async def hear(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        body = await reader.readexactly(int(length[1])) if length else b""
        self.heard.append((head, body))
        if self.answer is None:  # never; until the other side has enough
            await reader.read()
        else:
            writer.write(self.answer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
async def listener():
    listener = Listener()
    server = await asyncio.start_server(listener.hear, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    yield listener
    server.close()


@pytest.fixture
def start():
    """Start a server of the fake engine with these options; it is gone after the test."""
    running = []

    def begin(**options):
        running.append(Running(**options))
        return running[-1]

    yield begin
    for server in running:
        server.kill()
