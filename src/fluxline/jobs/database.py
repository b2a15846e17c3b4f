"""The database of jobs and keys: SQLite on one machine, PostgreSQL for several.

Transactions are short and block; any thread may open one.
"""

import fcntl
import logging
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from fluxline.errors import ConfigError, DatabaseDown, FluxlineError
from fluxline.jobs.table import SCHEMA_VERSION, metadata, schema

BUSY_S = 5.0  # how long a writer waits for another
STILL_BUSY_S = 0.1  # of SQLite: and the next, as long as nobody got through; they come in a row
MAKING = 0x666C7578  # the advisory lock of who makes the tables
FULL, READ_ONLY, LOCKED = "no space is left on its disk", "it is read-only", "it is locked"
OF_SQLITE = {
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_READONLY: READ_ONLY,
    sqlite3.SQLITE_BUSY: LOCKED,
    sqlite3.SQLITE_LOCKED: LOCKED,
}
"""What its primary result codes mean."""
OF_POSTGRES = {"53100": FULL, "25006": READ_ONLY, "55P03": LOCKED}
"""The same by SQLSTATE: disk_full, read_only_sql_transaction, lock_not_available."""

_log = logging.getLogger(__name__)


class Database:
    """Opens the database and makes its tables when they are not there.

    url: sqlite:///path or postgresql://…, whose query may hold libpq's words. secret: the same for
    all servers that use it. Raises ConfigError, DatabaseDown.
    """

    def __init__(self, url: str) -> None:
        self._engine = _opened(url)
        self._lock: IO[str] | None = None
        self._patience_s = BUSY_S
        try:
            self.secret = self._prepared()
        except ProgrammingError as exc:
            self.close()
            raise ConfigError(f"the database cannot be prepared: {_reason(exc)}") from exc
        except FluxlineError:
            self.close()
            raise

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
        """A transaction that writes nothing. Raises DatabaseDown."""
        with _translated("read"), self._engine.connect() as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is written whole or not at all. Raises DatabaseDown.

        If the connection breaks at its very end, it may be written all the same.
        """
        engine = self._engine.execution_options(writes=True, patience_s=self._patience_s)
        try:
            with _translated("written"), engine.begin() as db:
                self._patience_s = BUSY_S
                yield db
        except DatabaseDown:
            self._patience_s = STILL_BUSY_S
            raise

    @contextmanager
    def writing_alone(self) -> Iterator[Connection]:
        """A transaction beside which no other of its kind runs, on whatever server."""
        with self.writing() as db:
            db.execute(select(schema.c.version).with_for_update())  # SQLite has one writer anyway
            yield db

    def _prepared(self) -> bytes:
        """Make what is not there; return the secret."""
        with self.writing() as db:
            if self.is_shared:
                db.execute(select(func.pg_advisory_xact_lock(MAKING)))
            metadata.create_all(db)
            if (found := db.execute(select(schema)).first()) is None:
                fresh = {"version": SCHEMA_VERSION, "secret": secrets.token_hex(32)}
                db.execute(insert(schema).values(fresh))
                found = db.execute(select(schema)).one()
        if found.version != SCHEMA_VERSION:
            message = f"the database has schema {found.version}; this reads {SCHEMA_VERSION}"
            raise ConfigError(message)
        return bytes.fromhex(found.secret)


@contextmanager
def _translated(verb: str) -> Iterator[None]:
    """Say in our words that the database is away, locked, full or not to be written now."""
    try:
        yield
    except (OperationalError, InternalError, InterfaceError, PoolTimeout) as exc:
        _log.warning("the job database cannot be %s: %s", verb, _reason(exc))
        cause = _cause(exc)
        message = f"the job database cannot be {verb} now{f': {cause}' if cause else ''}"
        raise DatabaseDown(message, retry_after_s=5.0) from exc


def _cause(exc: Exception) -> str | None:
    """Why, in words of ours that name no place; None: it cannot be told by the driver's code."""
    said = exc.orig if isinstance(exc, DBAPIError) else None
    if isinstance(said, sqlite3.Error):
        code = getattr(said, "sqlite_errorcode", None)  # the driver's own complaints have none
        return None if code is None else OF_SQLITE.get(code & 0xFF)  # the rest says more exactly
    return OF_POSTGRES.get(getattr(said, "sqlstate", None) or "")


def _reason(exc: Exception) -> str:
    """What the driver said, on one line and without the statement."""
    said = exc.orig if isinstance(exc, DBAPIError) else exc
    return " ".join(str(said).split())


def _opened(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError("database must be a URL, like postgresql://user@host/name") from None
    if parsed.drivername.startswith("sqlite"):
        engine = create_engine(parsed, connect_args={"timeout": BUSY_S})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return _opened_postgres(parsed.set(drivername="postgresql+psycopg"))
    raise ConfigError(f"jobs live in SQLite or PostgreSQL; got {parsed.drivername}")


def _opened_postgres(url: URL) -> Engine:
    try:
        from fluxline.jobs import postgres

        return postgres.opened(url, pool_s=BUSY_S)
    except ImportError as exc:
        message = "PostgreSQL's driver is not installed: pip install 'fluxline[postgres]'"
        raise ConfigError(message) from exc


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver does
    _write_ahead(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: Any) -> None:
    """Have a write-ahead log. Who makes a new database at the same time is not waited for by
    SQLite itself: here it is.
    """
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("writes", False):
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1000 * options['patience_s'])}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("BEGIN")
