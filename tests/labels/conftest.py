"""Label stores for tests: an SQLite file that is a copy of a migrated one, and databases of a throw-away PostgreSQL."""

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.label import postgres

from labels.small_store import QUICK, SmallStore
from prefloop.labels.database import open_database


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory) -> Path:
    """An empty store; migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("labels") / "labels.sqlite"
    open_database(str(path)).close()
    return path


@pytest.fixture
def quick_folder() -> Iterator[Path]:
    """Gone after the test, like the usual one, but without a disk."""
    with tempfile.TemporaryDirectory(dir=QUICK) as folder:
        yield Path(folder)


@pytest.fixture
def store(quick_folder, migrated_file) -> Iterator[SmallStore]:
    """An empty SQLite store with a clock of its own."""
    path = quick_folder / "labels.sqlite"
    shutil.copy(migrated_file, path)
    with SmallStore.at(str(path)) as opened:
        yield opened


_numbers = itertools.count()


@pytest.fixture(scope="session")
def migrated_database(postgres_server) -> Iterator[str]:
    """The name of a database with an empty store, to be copied."""
    with postgres.new_database(postgres_server, "migrated") as url:
        open_database(url).close()
        yield "migrated"


@pytest.fixture
def postgres_store(postgres_server, migrated_database) -> Iterator[SmallStore]:
    """An empty PostgreSQL store with a clock of its own."""
    name = f"labels_copy_{next(_numbers)}"
    with (
        postgres.new_database(postgres_server, name, template=migrated_database) as url,
        SmallStore.at(url) as opened,
    ):
        yield opened


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def any_store(request) -> SmallStore:
    """The same test on both databases."""
    return request.getfixturevalue("store" if request.param == "sqlite" else "postgres_store")
