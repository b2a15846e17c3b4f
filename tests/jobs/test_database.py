"""The database itself: who may open it, what it waits for, and that it comes back."""

import socket
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import errors
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from fluxline.errors import ConfigError, DatabaseDown
from fluxline.jobs import Database, JobStore, Limits, NewJob


def accept(database, name):
    new = NewJob(id=name, request="{}", fingerprint=name)
    JobStore(database).accept(new, Limits(waiting=99))


@pytest.fixture
def postgres_url(postgres):
    with postgres.database() as url:
        yield url


def test_servers_that_open_a_new_database_at_once_agree_on_its_secret(opened):
    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(lambda _: opened().secret, range(6)))) == 1


def test_a_database_of_another_version_is_refused(opened, database):
    with database.writing() as db:
        db.execute(text("update schema set version = 99"))
    with pytest.raises(ConfigError, match="schema 99"):
        opened()


def test_sqlite_is_one_servers_own(tmp_path):
    url = f"sqlite:///{tmp_path}/jobs.sqlite3"
    first, second = Database(url), Database(url)
    first.own()
    with pytest.raises(ConfigError, match="another server"):
        second.own()
    first.close()
    second.own()
    second.close()


@pytest.mark.slow
def test_postgresql_is_shared(postgres_url):
    databases = [Database(postgres_url) for _ in range(2)]
    for database in databases:
        database.own()
        assert database.is_shared
        database.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://localhost/x", "SQLite or PostgreSQL; got mysql"),
        ("postgresql+asyncpg://localhost/x", "got postgresql.asyncpg"),
        ("jobs.db", "must be a URL"),
        ("", "must be a URL"),
    ],
)
def test_another_kind_of_database_is_refused(url, said):
    with pytest.raises(ConfigError, match=said):
        Database(url)


def test_without_its_driver_postgresql_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'fluxline\[postgres\]'"):
        Database("postgresql://localhost/x")


def test_a_database_that_cannot_be_written_accepts_nothing_and_says_so(database, caplog):
    if database.is_shared:
        forbid = "set session characteristics as transaction read only"
    else:
        forbid = "pragma query_only = on"
    with database.reading() as db:
        db.exec_driver_sql(forbid)
        db.commit()
    with pytest.raises(DatabaseDown, match="cannot be written now: it is read-only"):
        accept(database, "x")
    assert "read-only transaction" in caplog.text or "readonly database" in caplog.text


def test_a_disk_that_is_full_is_said_and_what_was_written_is_there(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/jobs.sqlite3")
    accept(database, "before")
    with database.reading() as db:
        db.exec_driver_sql("pragma max_page_count = 1")  # as many as there are, and no more
    with pytest.raises(DatabaseDown) as caught:
        accept(database, "x" * 100_000)
    found = [row.id for row in JobStore(database).recent()]
    database.close()

    words = "the job database cannot be written now: no space is left on its disk"
    assert (caught.value.message, found) == (words, ["before"])


def test_a_lock_that_another_holds_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("fluxline.jobs.database.BUSY_S", 0.1)
    database = Database(f"sqlite:///{tmp_path}/jobs.sqlite3")
    other = sqlite3.connect(tmp_path / "jobs.sqlite3")
    other.execute("begin immediate")
    with pytest.raises(DatabaseDown, match="cannot be written now: it is locked"):
        accept(database, "x")
    other.close()
    accept(database, "x")
    database.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.DiskFull(), "written now: no space is left on its disk"),
        (errors.LockNotAvailable(), "written now: it is locked"),
        (errors.AdminShutdown("at 10.0.0.7"), "written now"),
    ],
)
def test_what_postgresql_says_by_its_code_is_said_without_its_words(error, said, database):
    with pytest.raises(DatabaseDown) as caught, database.writing():
        raise OperationalError("select 1", None, error)

    assert caught.value.message == f"the job database cannot be {said}"


@pytest.mark.slow
def test_a_lost_network_is_noticed_and_the_urls_own_words_win(postgres_url):
    database = Database(f"{postgres_url}?tcp_user_timeout=2000&application_name=mine")
    with database.reading() as db:
        words = db.connection.dbapi_connection.info.get_parameters()
        idle = db.scalar(text("show idle_in_transaction_session_timeout"))
    database.close()
    assert (words["tcp_user_timeout"], words["application_name"]) == ("2000", "mine")
    assert (words["keepalives_idle"], words["connect_timeout"], idle) == ("5", "5", "10s")


@pytest.mark.slow
def test_who_may_make_no_tables_is_told_at_the_start(postgres_url):
    owner = Database(postgres_url)
    with owner.writing() as db:
        db.execute(text("drop table schema, jobs, keys"))
        db.execute(text("create role guest login"))
    try:
        with pytest.raises(ConfigError, match="permission denied for schema public"):
            Database(postgres_url.replace("fluxline@", "guest@"))
    finally:
        with owner.writing() as db:
            db.execute(text("drop role guest"))
        owner.close()


@pytest.mark.slow
def test_a_database_that_is_not_there_is_named_in_the_log_alone(postgres_url, caplog):
    with pytest.raises(DatabaseDown) as caught:
        Database(f"{postgres_url}_not")
    assert "does not exist" in caplog.text
    assert "127.0.0.1" not in caught.value.message


@pytest.mark.slow
def test_a_server_that_is_down_is_said_and_what_was_written_is_there_when_it_is_back(
    postgres, postgres_url
):
    database = Database(postgres_url)
    accept(database, "before")
    postgres.stop()
    try:
        for _ in range(2):
            with pytest.raises(DatabaseDown, match="cannot be written") as caught:
                accept(database, "meanwhile")
            with pytest.raises(DatabaseDown, match="cannot be read"):
                JobStore(database).get("before")
    finally:
        postgres.start()
    accept(database, "after")
    found = [row.id for row in JobStore(database).recent()]
    database.close()
    assert caught.value.retry_after_s == 5
    assert sorted(found) == ["after", "before"]


def test_a_server_that_takes_connections_and_never_answers_is_told_in_good_time():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        with pytest.raises(DatabaseDown):
            Database(f"postgresql://x@127.0.0.1:{mute.getsockname()[1]}/x?connect_timeout=2")
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_a_server_that_stops_answering_holds_up_a_call_for_a_while_only(postgres, postgres_url):
    database = Database(postgres_url)
    accept(database, "before")
    took_s = []
    with postgres.frozen():
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(DatabaseDown):
                JobStore(database).get("before")
            took_s.append(time.monotonic() - began)
    found = JobStore(database).get("before")
    database.close()
    assert took_s[0] < 20
    assert took_s[1] < 8
    assert found


@pytest.mark.slow
def test_a_connection_lost_amid_a_transaction_writes_nothing(postgres_url):
    database = Database(postgres_url)

    def lose_amid():
        with database.writing() as db:
            db.execute(text("delete from schema"))
            pid = db.connection.dbapi_connection.info.backend_pid
            with database.writing() as other:
                other.execute(text("select pg_terminate_backend(:pid)"), {"pid": pid})
            db.execute(text("select 1"))

    with pytest.raises(DatabaseDown):
        lose_amid()
    again = Database(postgres_url)
    assert again.secret == database.secret
    for opened in (database, again):
        opened.close()


@pytest.mark.slow
def test_a_server_that_stops_amid_its_turn_holds_up_the_others_for_a_while_only(postgres_url):
    words = "options=-c%20idle_in_transaction_session_timeout%3D300ms"
    stopped, living = Database(f"{postgres_url}?{words}"), Database(postgres_url)
    has_turn, ends = threading.Event(), threading.Event()

    def stop_amid():
        with stopped.writing_alone() as db:
            has_turn.set()
            ends.wait(10)
            db.execute(text("select 1"))

    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(stop_amid)
        has_turn.wait(10)
        accept(living, "x")
        ends.set()
        with pytest.raises(DatabaseDown):
            stopping.result()
    for database in (stopped, living):
        database.close()
