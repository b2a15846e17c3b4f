"""Takes the blocking calls of the job store off the event loop, one after another."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from fluxline.errors import FluxlineError, NotReady

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)


class Clerk:
    """One thread, so that the calls of one server never wait for each other's locks."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")

    async def do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call. It is made to its end even when nobody waits for it any more.

        Raises what it raises, and NotReady after `close`.
        """
        try:
            future = self._thread.submit(call, *args, **kwargs)
        except RuntimeError:
            raise NotReady("the server is shutting down", retry_after_s=2.0) from None
        return await asyncio.shield(asyncio.wrap_future(future))

    def close(self) -> None:
        """Finish what is begun and take no more."""
        self._thread.shutdown()


async def endured(work: Awaitable[None]) -> None:
    """Do one round of work that is done for ever: whatever goes wrong, there is a next round."""
    try:
        await work
    except FluxlineError as exc:
        _log.warning("%s", exc.message)
    except Exception:  # noqa: BLE001 - a fault of ours must not end the loop
        _log.exception("unexpected failure")
