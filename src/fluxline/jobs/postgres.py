"""PostgreSQL, with the patience that a server has which must answer its own callers.

Imported only where it is used: its driver is an extra.
"""

from typing import Any, TypeVar

from psycopg import Connection, OperationalError
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Engine, create_engine, event

T = TypeVar("T")

ANSWER_S = 12.0  # for any answer; longer than the server's own limits, which tell more
WORDS: dict[str, str | int] = {  # libpq's; without them a lost network is found in hours
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
    # A server that was stopped amid a transaction must not hold up the others.
    "options": "-c lock_timeout=5s -c statement_timeout=10s"
    " -c idle_in_transaction_session_timeout=10s",
}


def opened(url: URL, *, pool_s: float) -> Engine:
    """Make an engine of a database; the words of its URL win. pool_s: to wait for a connection."""
    words = {word: value for word, value in WORDS.items() if word not in url.query}
    engine = create_engine(url, pool_pre_ping=True, pool_timeout=pool_s, connect_args=words)
    event.listen(engine, "do_connect", _connected)
    return engine


class _Impatient(Connection[Any]):  # Any: rows as SQLAlchemy likes them
    """A connection that is given up when its server lives and never answers.

    The kernel of such a machine goes on acknowledging, so that no timeout of TCP ever ends.
    """

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait for an answer. Raises OperationalError, closed, when there is none."""
        try:
            return super().wait(gen, interval, ANSWER_S if timeout is None else timeout)
        except OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()  # the answer may still come, and would be taken for another's
            raise


def _connected(dialect: object, record: object, args: Any, words: Any) -> Connection[Any]:
    return _Impatient.connect(*args, **words)
