"""The database of jobs and keys: SQLite on one machine, PostgreSQL for several.

Transactions are short and block; any thread may open one.
"""

import fcntl
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from fluxline.errors import ConfigError, NotReady
from fluxline.jobs.table import SCHEMA_VERSION, metadata, schema

BUSY_S = 5.0  # how long a writer of SQLite waits for another
STILL_BUSY_S = 0.1  # and the next one, as long as nobody got through: they come one after another


class Database:
    """Opens the database and makes its tables when they are not there. Raises ConfigError.

    url: sqlite:///path or postgresql+psycopg://… secret: the same for all servers that use it.
    """

    def __init__(self, url: str) -> None:
        self._engine = _opened(url)
        self._lock: IO[str] | None = None
        self._patience_s = BUSY_S
        with self.writing() as db:
            metadata.create_all(db)
            found = db.execute(select(schema)).first()
            if found is None:
                fresh = {"version": SCHEMA_VERSION, "secret": secrets.token_hex(32)}
                db.execute(insert(schema).values(fresh))
                found = db.execute(select(schema)).one()
            if found.version != SCHEMA_VERSION:
                message = f"the database has schema {found.version}; this reads {SCHEMA_VERSION}"
                raise ConfigError(message)
            self.secret = bytes.fromhex(found.secret)

    @property
    def is_shared(self) -> bool:
        """Whether several servers may use it at a time."""
        return self._engine.dialect.name != "sqlite"

    def own(self) -> None:
        """Be the one server of a database that cannot be shared. Raises ConfigError."""
        path = self._engine.url.database
        if self.is_shared or not path:
            return
        self._lock = open(f"{path}.lock", "w")  # noqa: SIM115 - held as long as the server lives
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            message = "another server uses this data folder: give this one its own with --data"
            raise ConfigError(message) from None

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()
        if self._lock:
            self._lock.close()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database. Raises NotReady."""
        try:
            with self._engine.connect() as db:
                yield db
        except OperationalError as exc:
            raise NotReady("the job database cannot be read now", retry_after_s=5.0) from exc

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is written whole or not at all. Raises NotReady."""
        engine = self._engine.execution_options(writes=True, patience_s=self._patience_s)
        try:
            with engine.begin() as db:
                self._patience_s = BUSY_S
                yield db
        except OperationalError as exc:  # locked, full, or not there: nothing was written
            self._patience_s = STILL_BUSY_S
            raise NotReady("the job database cannot be written now", retry_after_s=5.0) from exc


def _opened(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError("database must be a URL, like postgresql+psycopg://host/name") from None
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": BUSY_S})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.get_backend_name() == "postgresql":
        options = {"connect_timeout": 5, "keepalives_idle": 5, "tcp_user_timeout": 10_000}
        return create_engine(url, pool_pre_ping=True, connect_args=options)
    raise ConfigError(f"jobs live in SQLite or PostgreSQL; got {parsed.get_backend_name()}")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver does
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("writes", False):
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1000 * options['patience_s'])}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("BEGIN")
