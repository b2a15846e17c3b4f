"""Which names a caller may use for this server, and which pages may call it.

A page elsewhere can point a name of its own at this machine (DNS rebinding): its visitor's browser
then takes the two for one site, and sends whatever the page likes. The name stays in its headers.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp

from fluxline.server import envelope


class Neighbours:
    """Tells callers from pages of strangers.

    base_url: this server as seen from outside. asks_for_keys: then any name is good, for a browser
    that was tricked has no key, and the names in use are not known here.
    """

    def __init__(self, base_url: str, *, asks_for_keys: bool) -> None:
        parts = urlsplit(base_url)
        self._host, self._origin = parts.hostname, f"{parts.scheme}://{parts.netloc}".lower()
        self._asks_for_keys = asks_for_keys

    def refusal(self, headers: Headers) -> ASGIApp | None:
        """The answer to who must not come in; None: let them."""
        origin = headers.get("origin")
        if origin is not None and not self._is_near(origin):
            message = "pages of other sites may not call this; --public-url names one's own"
            return envelope.failure(403, message, code="foreign_origin")
        if not self._asks_for_keys and not self._is_ours(headers.get("host", "")):
            message = (
                "without keys, call this server by its address or localhost; "
                "--public-url gives it a name"
            )
            return envelope.failure(421, message, code="foreign_host")
        return None

    def _is_near(self, origin: str) -> bool:
        return origin.lower() == self._origin or is_loopback(_host(origin))

    def _is_ours(self, host: str) -> bool:
        """Whether this is no name that a stranger could have pointed here."""
        name = _host(f"//{host}")
        return name in ("localhost", self._host) or _is_address(name)


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
