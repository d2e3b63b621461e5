"""Group commit, upgrades, and everything that may be wrong with a database."""

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from labels.small_store import SmallStore
from prefloop.interfaces import InputError, Unavailable
from prefloop.labels import database, schema
from prefloop.labels.database import Database, open_database, the_only_server
from prefloop.labels.schema import setting
from prefloop.labels.writer import MOST_IN_A_COMMIT


def put(key: str):
    return lambda connection: connection.execute(sa.insert(setting).values(key=key, value=key)) and key


def keys(opened: Database) -> set[str]:
    found = opened.read(lambda connection: set(connection.execute(sa.select(setting.c.key)).scalars()))
    return found - {"secret"}


@contextlib.contextmanager
def held_writer(opened: Database):
    """Keeps the writer busy, so that what is asked meanwhile comes into one batch."""
    go_on = threading.Event()
    begun = threading.Event()

    def wait(connection):
        begun.set()
        go_on.wait()

    waiting = opened.write_soon(wait)
    begun.wait()
    yield
    go_on.set()
    waiting.result()


# --- group commit ----------------------------------------------------------------------------------------------------


def test_a_request_that_fails_takes_back_itself_and_not_its_neighbours(store):
    opened = store.database

    def fail(connection):
        put("bad")(connection)
        raise ValueError("no")

    with held_writer(opened):
        futures = [opened.write_soon(work) for work in (put("a"), fail, put("b"), put("a"), put("c"))]
    assert [futures[place].result() for place in (0, 2, 4)] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no"):
        futures[1].result()
    with pytest.raises(sa.exc.IntegrityError):
        futures[3].result()
    assert keys(opened) == {"a", "b", "c"}


def test_nothing_is_acknowledged_before_the_commit(store):
    opened = store.database
    seen = []

    def look_from_outside(connection):
        seen.append((first.done(), keys(opened)))

    with held_writer(opened):
        first = opened.write_soon(put("a"))
        second = opened.write_soon(look_from_outside)
    second.result()
    assert seen == [(False, set())]
    assert keys(opened) == {"a"}


def test_requests_that_wait_are_committed_together(store):
    opened = store.database
    commits = []
    sa.event.listen(opened.engine, "commit", lambda connection: commits.append(1))
    with held_writer(opened):
        futures = [opened.write_soon(put(f"key {number}")) for number in range(3 * MOST_IN_A_COMMIT)]
    for one in futures:
        one.result()
    assert len(commits) == 1 + 3


def test_the_disk_is_flushed_at_every_commit(store):
    def pragmas(connection):
        return [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("synchronous", "journal_mode", "foreign_keys")
        ]

    assert store.database.write(pragmas) == [2, "wal", 1]  # 2 is FULL
    assert store.database.read(pragmas) == [2, "wal", 1]


def test_a_full_disk_fails_the_whole_batch_and_the_writer_goes_on(store):
    opened = store.database
    opened.write(put("before"))

    def fill(connection):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 1}")
        connection.execute(sa.insert(setting).values(key="big", value="x" * 1_000_000))

    with held_writer(opened):
        futures = [opened.write_soon(work) for work in (put("a"), fill, put("b"))]
    with pytest.raises(Unavailable, match="full"):
        futures[1].result()
    # SQLite rolls back all or only the statement that found no room; either way everybody is told the truth
    told = {name for name, one in zip("ab", futures[::2], strict=True) if one.exception() is None}
    assert keys(opened) == {"before"} | told
    opened.write(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=1000000").scalar())
    assert opened.write(put("after")) == "after"


def test_a_commit_that_fails_is_told_to_all_and_keeps_nothing(store):
    opened = store.database
    commits = []

    def refuse_the_second(connection):
        commits.append(1)
        if len(commits) == 2:
            raise sqlite3.OperationalError("disk I/O error")

    sa.event.listen(opened.engine, "commit", refuse_the_second)
    with held_writer(opened):
        futures = [opened.write_soon(put(name)) for name in "abc"]
    for one in futures:
        with pytest.raises(Unavailable, match="disk"):
            one.result()
    assert keys(opened) == set()
    assert opened.write(put("after")) == "after"
    assert keys(opened) == {"after"}


def test_a_request_that_undoes_the_whole_transaction_is_told_to_its_neighbours(store):
    opened = store.database

    def roll_back(connection):
        connection.exec_driver_sql("ROLLBACK")  # as SQLite does itself where it finds no memory or no disk
        raise ValueError("gone")

    with held_writer(opened):
        futures = [opened.write_soon(work) for work in (put("a"), roll_back, put("b"))]
    assert all(isinstance(one.exception(), ValueError) for one in futures)
    assert keys(opened) == set()
    assert opened.write(put("after")) == "after"


def test_who_goes_away_does_not_stop_the_writer(store):
    opened = store.database

    async def leave():
        waiting = asyncio.wrap_future(opened.write_soon(put("left")))
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

    with held_writer(opened):
        asyncio.run(leave())
        staying = opened.write_soon(put("stayed"))
    assert staying.result(timeout=10) == "stayed"


def test_closing_finishes_what_waits_and_refuses_what_comes(store):
    opened = store.database
    futures = [opened.write_soon(put(str(number))) for number in range(200)]
    opened.close()
    assert all(one.result(timeout=0) for one in futures)
    with pytest.raises(Unavailable, match="closed"):
        opened.write(put("too late"))
    opened.close()


def test_a_write_within_a_write_is_told_and_does_not_wait_for_itself(store):
    database = store.database
    with pytest.raises(AssertionError, match="wait for itself"):
        database.write(lambda _: database.write(lambda connection: 1))
    assert database.write(lambda _: 2) == 2


def test_two_processes_can_write_to_one_file(store):
    opened = store.database
    url = opened.engine.url
    script = (
        "import sys, sqlalchemy as sa\n"
        "from prefloop.labels.database import open_database\n"
        "from prefloop.labels.schema import setting\n"
        "opened = open_database(sys.argv[1])\n"
        "for number in range(50):\n"
        "    opened.write(lambda c: c.execute(sa.insert(setting).values(key=f'other {number}', value='')) and None)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, url.database])
    for number in range(50):
        opened.write(put(f"own {number}"))
    assert other.wait() == 0
    assert len(keys(opened)) == 100


def test_a_snapshot_does_not_see_what_comes_after_it(any_store):
    opened = any_store.database
    opened.write(put("before"))
    count = sa.select(sa.func.count()).select_from(setting)
    with opened.snapshot() as connection:
        first = connection.execute(count).scalar_one()
        opened.write(put("after"))
        assert connection.execute(count).scalar_one() == first


# --- one server ------------------------------------------------------------------------------------------------------


def test_a_second_server_is_refused_until_the_first_has_gone(store, tmp_path):
    url = store.database.engine.url
    linked = tmp_path / "link.sqlite"
    linked.symlink_to(url.database)
    script = (
        "import sys, time\n"
        "from prefloop.labels.database import database_url, the_only_server\n"
        "with the_only_server(database_url(sys.argv[1])):\n"
        "    print('holds', flush=True)\n"
        "    time.sleep(600)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", script, url.database], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "holds\n"
    for place in (url, database.database_url(str(linked))):
        with pytest.raises(InputError, match="another server"):
            the_only_server(place)
    first.kill()  # leaves no time to tidy up
    first.wait()
    with the_only_server(url):
        pass


def test_postgresql_has_as_many_servers_as_one_likes():
    url = database.database_url("postgresql://host/labels")
    with the_only_server(url), the_only_server(url):
        pass


# --- opening ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Not a database at all, but long enough to look like one.\n" * 100)
    with pytest.raises(InputError, match=r"notes\.txt.*not a database"):
        open_database(str(path))
    assert path.read_text().startswith("Not a database")


def test_a_folder_is_no_database(tmp_path):
    with pytest.raises(InputError, match="unable to open"):
        open_database(str(tmp_path))


def test_a_database_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "music.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(InputError, match="tables of something else .songs."):
        open_database(str(path))
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("songs",)]


@pytest.mark.parametrize("place", ["mysql://host/labels", "sqlite://", "sqlite:///:memory:", "not a url://"])
def test_other_databases_are_refused(place):
    with pytest.raises(InputError):
        open_database(place)


def test_a_store_of_a_newer_prefloop_is_refused_and_left_alone(migrated_file, tmp_path):
    path = tmp_path / "labels.sqlite"
    shutil.copy(migrated_file, path)
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.commit()
    with pytest.raises(InputError, match="newer prefloop .schema 9999."):
        open_database(str(path))
    assert [one.name for one in tmp_path.iterdir() if "before-upgrade" in one.name] == []


@pytest.mark.postgresql
def test_a_postgresql_that_does_not_answer_is_unavailable():
    pytest.importorskip("psycopg")
    with pytest.raises(Unavailable, match="refused"):
        open_database("postgresql://prefloop:secret@127.0.0.1:1/labels")


@pytest.mark.postgresql
def test_the_password_of_a_database_is_told_to_nobody():
    pytest.importorskip("psycopg")
    with pytest.raises(Unavailable) as told:
        open_database("postgresql://prefloop:sesame@127.0.0.1:1/labels")
    assert "sesame" not in str(told.value)


@pytest.mark.postgresql
def test_a_postgresql_that_goes_away_is_unavailable_and_comes_back(postgres_store, postgres_server):
    opened = postgres_store.database
    opened.write(put("before"))
    # with a time it comes back when the other side has ended, not when it was told to
    killer = sa.create_engine(database.database_url(postgres_server), isolation_level="AUTOCOMMIT")
    cut = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE starts_with(datname, 'labels')"

    def work(connection):
        with killer.connect() as other:
            other.exec_driver_sql(cut)
        return put("lost")(connection)

    with pytest.raises(Unavailable, match="cannot be reached"):
        opened.write(work)
    killer.dispose()
    assert opened.write(put("after")) == "after"
    assert keys(opened) == {"before", "after"}


@pytest.mark.postgresql
def test_the_clock_of_postgresql_rules(postgres_url):
    opened = open_database(postgres_url)
    try:
        there = opened.read(
            lambda connection: connection.exec_driver_sql(
                "SELECT extract(epoch FROM clock_timestamp())"
            ).scalar()
        )
        assert abs(opened.now() / 1000 - float(there)) < 5
        opened._ahead = 3600.0
        assert opened.now() / 1000 - time.time() > 3590
    finally:
        opened.close()


# --- migrations ------------------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_code_speaks_of(any_store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with any_store.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_the_partial_indexes_are_those_that_the_code_speaks_of(store):
    def conditions(connection):
        rows = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql LIKE '%WHERE%'"
        )
        return {row.name: row.sql.split(" WHERE ")[1] for row in rows}

    wanted = {
        index.name: str(index.dialect_options["sqlite"]["where"])
        for table in schema.metadata.tables.values()
        for index in table.indexes
        if index.dialect_options["sqlite"]["where"] is not None
    }
    assert store.database.read(conditions) == wanted


REVISION = '''"""{doc}"""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"


def upgrade():
{body}
'''
REMAKE_PROJECT = """    with op.batch_alter_table("project", recreate="always") as batch:
        batch.add_column(sa.Column("colour", sa.Text(), nullable=False, server_default="red"))
"""


@pytest.fixture
def newer_code(tmp_path, monkeypatch):
    """Migrations with one more, which SQLite can only make by building a table anew that others refer to."""

    def add(body: str) -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(database.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        head = max(path.name[:4] for path in (folder / "versions").glob("0*.py"))
        (folder / "versions" / "9000_more.py").write_text(
            REVISION.format(doc="More.", revision="9000", before=head, body=body)
        )
        monkeypatch.setattr(database, "MIGRATIONS", folder)

    return add


def fill(store: SmallStore) -> None:
    store.project(overlap=2)
    store.publish(5)
    for _ in range(2):
        person = store.person()
        for _ in range(3):
            store.judge(person)


def counts(path: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(path)) as raw:
        names = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: raw.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}


def test_an_older_store_is_copied_and_brought_up_to_date(store, newer_code):
    fill(store)
    path = Path(store.database.engine.url.database or "")
    store.database.close()
    before = counts(path)
    newer_code(REMAKE_PROJECT)
    with SmallStore.at(str(path)) as newer:
        colour = newer.database.read(lambda c: c.exec_driver_sql("SELECT colour FROM project").scalar())
        references = newer.database.read(lambda c: c.exec_driver_sql("PRAGMA foreign_key_check").all())
        assert newer.claim(newer.person()) is not None
    assert (colour, references) == ("red", [])
    assert {
        name: count for name, count in counts(path).items() if name not in ("annotator", "member", "lease")
    } == {name: count for name, count in before.items() if name not in ("annotator", "member", "lease")}
    (copy,) = path.parent.glob("labels.sqlite.before-upgrade-*")
    assert counts(copy) == before
    with contextlib.closing(sqlite3.connect(copy)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() != ("9000",)


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(store, newer_code):
    fill(store)
    path = Path(store.database.engine.url.database or "")
    store.database.close()
    before = counts(path)
    newer_code(REMAKE_PROJECT + '    op.execute("INSERT INTO nowhere VALUES (1)")\n')
    with pytest.raises(InputError, match="nowhere"):
        open_database(str(path))
    assert counts(path) == before


def test_an_upgrade_that_would_orphan_rows_is_taken_back(store, newer_code):
    fill(store)
    path = Path(store.database.engine.url.database or "")
    store.database.close()
    before = counts(path)
    newer_code('    op.execute("DELETE FROM task")\n')
    with pytest.raises(InputError, match="without their parents"):
        open_database(str(path))
    assert counts(path) == before


def test_two_processes_can_open_a_new_store_at_once(tmp_path):
    script = (
        "import sys; from prefloop.labels.database import open_database; open_database(sys.argv[1]).close()"
    )
    path = tmp_path / "labels.sqlite"
    both = [subprocess.Popen([sys.executable, "-c", script, path]) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert counts(path)["setting"] == 1
