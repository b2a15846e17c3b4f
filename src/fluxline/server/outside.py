"""Goes to addresses that callers name, without becoming their way into the network it stands in.

One parser reads the URL. A name is resolved once and the connection goes to that very address, no
redirect is followed and no proxy asked. Lives on one event loop.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING

from fluxline.errors import InvalidParams

if TYPE_CHECKING:
    import httpx2

EVERYWHERE = "*"
LONGEST_URL = 2048
ANSWER_S = 10.0
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[list[str]]]


class Unreachable(Exception):
    """Nothing could be sent there or fetched; the message says why."""


class Outside:
    """hosts: those that may be named, wherever they are; EVERYWHERE: and all public ones.

    option: the server's, by which somebody may open it.
    """

    def __init__(
        self, hosts: str, *, option: str = "--webhook-hosts", resolve: Resolve | None = None
    ) -> None:
        self._option = option
        named = {host.strip().lower() for host in hosts.split(",") if host.strip()}
        self._is_open = EVERYWHERE in named
        self._named = named - {EVERYWHERE}
        self._resolve = resolve or _resolve

    @property
    def is_closed(self) -> bool:
        """Whether nothing may be sent anywhere."""
        return not self._is_open and not self._named

    def check(self, url: str, field: str) -> None:
        """Refuse a URL to which nothing may be sent. Raises InvalidParams naming the field."""
        if self.is_closed:
            message = f"{field} may hold no address here: the server would need {self._option}"
            raise InvalidParams(message, field=field)
        try:
            self._read(url)
        except Unreachable as exc:
            raise InvalidParams(f"{field} {exc}", field=field) from None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Send a body, and have it acknowledged by any 2xx. Raises Unreachable."""
        async with self._answer("POST", url, content=body, headers=headers):
            return

    async def get(self, url: str, *, most_bytes: int) -> bytes:
        """Fetch what lies there, of at most so many bytes. Raises Unreachable."""
        found = bytearray()
        async with self._answer("GET", url, headers={"accept-encoding": "identity"}) as answer:
            async for chunk in answer.aiter_raw():
                found += chunk
                if len(found) > most_bytes:
                    raise Unreachable(f"has more than {most_bytes} bytes")
        return bytes(found)

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes | None = None
    ) -> "AsyncGenerator[httpx2.Response]":
        """Ask, and be answered by any 2xx; all in good time. Raises Unreachable."""
        import httpx2

        try:
            async with asyncio.timeout(ANSWER_S):
                target = self._read(url)
                address = await self._address(target)
                there = target.copy_with(host=address)
                headers = {**headers, "host": target.netloc.decode("ascii")}
                sni = {"sni_hostname": target.raw_host.decode("ascii")}
                context = await asyncio.to_thread(_tls)
                async with (
                    httpx2.AsyncClient(verify=context, trust_env=False) as client,
                    client.stream(
                        method, there, content=content, headers=headers, extensions=sni
                    ) as answer,
                ):
                    if not 200 <= answer.status_code < 300:
                        raise Unreachable(f"answered {answer.status_code}")
                    yield answer
        except TimeoutError:
            raise Unreachable(f"did not answer in {ANSWER_S:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError):
            raise Unreachable("could not be reached") from None

    def _read(self, url: str) -> "httpx2.URL":
        import httpx2

        try:
            read = httpx2.URL(url)
        except (httpx2.InvalidURL, UnicodeError, ValueError):
            raise Unreachable("must be a URL") from None
        host = read.raw_host.decode("ascii").lower()
        is_named = host in self._named
        if len(url) > LONGEST_URL:
            raise Unreachable(f"may have at most {LONGEST_URL} characters")
        if read.scheme != "https" and not (is_named and read.scheme == "http"):
            raise Unreachable("must begin with https://")
        if not host or read.userinfo or "\\" in url or not (read.port is None or read.port < 2**16):
            raise Unreachable("must name a host, without user or password")
        if not is_named and not self._is_open:
            raise Unreachable(f"may not lead to {host}")
        if not is_named and _is_address(host) and not _is_public(host):
            raise Unreachable(f"may not lead to {host}")
        return read

    async def _address(self, url: "httpx2.URL") -> str:
        """Where a host is, once. A name that has one address that is not public leads nowhere."""
        host = url.raw_host.decode("ascii").lower()
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError):  # a label may be empty, or too long
            raise Unreachable(f"names {host}, which is not known") from None
        if host not in self._named and not all(map(_is_public, found)):
            raise Unreachable(f"may not lead to {host}")
        return found[0]


@cache
def _tls() -> ssl.SSLContext:
    """The authorities that this machine trusts, read once: a tenth of a second."""
    return ssl.create_default_context()


async def _resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour or address.teredo
        if hidden or address in _NAT64:  # an IPv4 address in disguise
            return False
    return address.is_global and not address.is_multicast
