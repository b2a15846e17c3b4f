"""Which names a caller may use for this server, and which pages may call it.

A page elsewhere can point a name of its own at this machine (DNS rebinding): its visitor's browser
then takes the two for one site, and sends whatever the page likes. The name stays in its headers.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fluxline.server import envelope

EVERYWHERE = "*"


class Gate:
    """Turns away pages of strangers, before anything else is looked at.

    base_url: this server as seen from outside. pages: origins whose pages may call. asks_for_keys:
    then any name is good, for a browser that was tricked has no key, and the names in use are not
    known here.
    """

    def __init__(
        self, app: ASGIApp, *, base_url: str, pages: Collection[str], asks_for_keys: bool
    ) -> None:
        self._app = app
        parts = urlsplit(base_url)
        self._host, self._origin = parts.hostname, f"{parts.scheme}://{parts.netloc}".lower()
        self._pages = {page.lower() for page in pages}
        self._asks_for_keys = asks_for_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, headers: Headers) -> ASGIApp | None:
        """The answer to who must not come in; None: let them."""
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and not self._is_near(origin, host):
            message = "pages of other sites may not call this; --cors names those that may"
            return envelope.failure(403, message, code="foreign_origin")
        if not self._is_known(host):
            message = (
                "without keys, call this server by its address or localhost; "
                "--public-url gives it a name"
            )
            return envelope.failure(421, message, code="foreign_host")
        return None

    def _is_near(self, origin: str, host: str) -> bool:
        origin = origin.lower()
        if origin in self._pages or EVERYWHERE in self._pages or origin == self._origin:
            return True
        is_own = origin.partition("://")[2] == host.lower()  # a page of this very server
        return (is_own and self._is_known(host)) or is_loopback(_host(origin))

    def _is_known(self, host: str) -> bool:
        return self._asks_for_keys or self._is_ours(host)

    def _is_ours(self, host: str) -> bool:
        """Whether this is no name that a stranger could have pointed here."""
        name = _host(f"//{host}")
        return name is not None and (name in ("localhost", self._host) or _is_address(name))


def is_loopback(host: str | None) -> bool:
    """Whether only this machine is reached, or listened to, by this name or address."""
    if host == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host or "").is_loopback


def _is_address(host: str | None) -> bool:
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
