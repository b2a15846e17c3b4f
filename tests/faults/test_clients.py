"""Callers who leave, dawdle, vanish, flood or talk nonsense: the others do not notice."""

import asyncio
import random
import socket

import pytest

from tests.faults.conftest import CANARY, Footprint, scaled
from tests.running import Running

pytestmark = pytest.mark.slow
IMPATIENT = """
import fluxline.server.connection as connection, fluxline.server.exchange as exchange
connection.HEAD_S, connection.STALLED_S, exchange.BODY_TIMEOUT_S = 1.0, 1, 1.0
"""
FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
"""
POST = b"POST /v1/images/generations HTTP/1.1\r\nhost: [::1]\r\ncontent-type: application/json\r\n"


async def settled(server, http, before, *, more=0):
    """Wait until a server holds no more files than it did, or so many more; not for ever."""
    async with asyncio.timeout(20):
        while True:
            said = (await http.get("/health")).json()
            now = Footprint.of(server)
            if said["waiting"] == said["running"] == 0 and now.files <= before.files + more:
                return now
            await asyncio.sleep(0.1)


async def test_who_leaves_takes_their_request_along_and_leaves_nothing(start, client, ledger, data):
    server, chance = start(0.02, queue_limit=200), random.Random(3)
    async with client(server) as http:
        await ledger.draw(http, CANARY)
        before = Footprint.of(server)

        async def leave(k):
            body = {"prompt": f"{CANARY} {k}", "stream": k % 2 == 0}
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.05, 1.0)):
                    await http.post("/v1/images/generations", json={**body, "n": 10})

        await asyncio.gather(*(leave(k) for k in range(scaled(40))))
        after = await settled(server, http, before, more=2)
        last = await ledger.draw(http, CANARY)
    server.end()

    assert last.status == 200
    assert after.threads <= before.threads + 8
    assert after.rss_mib < before.rss_mib + 32


async def test_who_stops_following_a_job_does_not_stop_it(start, client, ledger, data):
    server = start(0.05)
    async with client(server) as http:
        entry = await ledger.submit(http, CANARY)
        async with http.stream("GET", f"/v1/jobs/{entry.job_id}/events") as stream:
            await anext(stream.aiter_bytes())
        await ledger.settle(http)
    server.end()

    ledger.check(data)


async def hung_up_on(reader, within_s=20):
    async with asyncio.timeout(within_s):
        try:
            while await reader.read(2**16):
                pass
        except ConnectionError:
            return


async def test_a_head_that_does_not_end_is_hung_up_on(start, client):
    server = start(first=IMPATIENT)
    async with client(server) as http:
        lines = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(30)]
        for _, writer in lines[10:]:
            writer.write(b"GET / HTTP/1.1\r\nhost: [::1]\r\n")
        for _, writer in lines[20:]:  # a whole request first, then a second that does not end
            writer.write(b"\r\nGET / HTTP/1.1\r\nx: ")

        async def dawdle(reader, writer):
            hanging = asyncio.create_task(hung_up_on(reader))
            while not hanging.done():
                writer.write(b"a")
                await asyncio.sleep(0.2)
            await hanging
            writer.close()

        await asyncio.gather(*(dawdle(*line) for line in lines[10:]))
        for reader, writer in lines[:10]:
            await hung_up_on(reader)
            writer.close()
        assert (await http.get("/health/live")).status_code == 200


async def test_a_body_that_does_not_end_is_told_so(start):
    server = start(first=IMPATIENT)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(POST + b"content-length: 100\r\n\r\n{")

    assert b" 408 " in await asyncio.wait_for(reader.readline(), 20)
    writer.close()


async def test_who_stops_reading_is_hung_up_on_and_keeps_nobody_waiting(start, client):
    server = start(first=IMPATIENT)
    async with client(server) as http:
        before = await settled(server, http, Footprint(1000, 0, 0, 0))
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", server.port))
        line.setblocking(False)
        line.send(b"GET /openapi.json HTTP/1.1\r\nhost: [::1]\r\n\r\n" * 1000)
        await asyncio.sleep(0.5)
        assert Footprint.of(server).files > before.files
        assert (await http.get("/health/live")).status_code == 200
        after = await settled(server, http, before)
        line.close()

    assert after.rss_mib < before.rss_mib + 32


async def test_a_flood_of_silent_lines_leaves_room_for_who_asks(start, client):
    server = start(first=FEW_FILES)
    lines = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)]
    async with client(server) as http:
        answer = await asyncio.wait_for(http.get("/health/live"), 20)
        [worker] = server.workers
        worker.kill()  # the next one needs files, too
        drawn = await http.post("/v1/images/generations", json={"prompt": CANARY})
    for _, writer in lines:
        writer.close()

    assert (answer.status_code, drawn.status_code) == (200, 200)


NONSENSE = {
    "zeros": b"\0" * 1000,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x55" * 500,
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http 0.9": b"GET /\r\n",
    "http 9.9": b"GET / HTTP/9.9\r\nhost: [::1]\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two lengths": POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}}",
    "a length below nothing": POST + b"content-length: -1\r\n\r\n",
    "a length beyond all": POST + b"content-length: 99999999999999999999\r\n\r\n",
    "a length in words": POST + b"content-length: \xb2\r\n\r\n",
    "length and chunks": POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a chunk beyond all": POST + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
    "a chunk of words": POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "a long header": b"GET / HTTP/1.1\r\nhost: [::1]\r\nx: " + b"a" * 200_000,
    "many headers": b"GET / HTTP/1.1\r\nhost: [::1]\r\n" + b"x: a\r\n" * 30_000,
    "a long address": b"GET /" + b"a" * 200_000,
    "half a character": b"GET /v1/jobs/%ff%fe HTTP/1.1\r\nhost: [::1]\r\n\r\n",
    "a zero in the address": b"GET /v1/jobs/%00 HTTP/1.1\r\nhost: [::1]\r\n\r\n",
    "dots": b"GET /files/..%2f..%2fjobs.sqlite3?expires=9&signature=0 HTTP/1.1\r\n"
    b"host: [::1]\r\n\r\n",
    "an address elsewhere": b"GET http://elsewhere/v1/jobs/x HTTP/1.1\r\nhost: [::1]\r\n\r\n",
    "a way through": b"CONNECT elsewhere:443 HTTP/1.1\r\nhost: [::1]\r\n\r\n",
    "a web socket": b"GET / HTTP/1.1\r\nhost: [::1]\r\nupgrade: websocket\r\n"
    b"connection: upgrade\r\n\r\n",
    "a line in a header": b"GET / HTTP/1.1\r\nhost: [::1]\r\nx: a\rb\r\n\r\n",
    "nonsense after a request": b"GET / HTTP/1.1\r\nhost: [::1]\r\n\r\n\0\0\0\0\r\n\r\n",
    "packed": POST + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00",
}


@pytest.fixture(scope="module")
def impatient():
    server = Running(first=IMPATIENT)
    server.line()
    yield server
    code, _, log = server.end()
    assert code == 0
    assert "Traceback" not in log


@pytest.mark.parametrize("raw", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_is_refused_or_hung_up_on(raw, impatient):
    before = Footprint.of(impatient)
    reader, writer = await asyncio.open_connection("127.0.0.1", impatient.port)
    try:
        writer.write(raw)
        writer.write_eof()
        said = await asyncio.wait_for(reader.read(2**20), 10)
    except OSError:  # it hung up before all was said
        said = b""
    writer.close()

    assert not said or said[9:10] in b"24"
    assert Footprint.of(impatient).rss_mib < before.rss_mib + 8
