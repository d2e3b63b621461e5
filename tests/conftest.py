"""Tiny real models, the development data, and a throw-away PostgreSQL, shared by all tests."""

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# one thread for each of several workers and for the processes they start; torch reads it at its import
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from prefloop import tales
from prefloop.config import RuntimeSection

# nohup and a shell's & ignore Ctrl-C for all that they start, and tests press it in processes of their own
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are a package beside src that nobody installs
SHARED = Path(os.environ.get("PREFLOOP_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_collection_modifyitems(items):
    if not SHARED.is_dir():
        skip = pytest.mark.skip(reason=f"the development data is not at {SHARED}; set PREFLOOP_SHARED")
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


@pytest.fixture
def runtime() -> RuntimeSection:
    return RuntimeSection(device="cpu")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random Llama with a tokenizer learned from the built-in tales: a policy folder in a fraction of a second."""
    from prefloop.modeling import make_tiny_model

    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_tiny_model([one.text for one in tales.texts(500)], folder, seed=0)
    return folder


# --- label stores ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    from benchmarks.label import postgres

    if postgres.programs() is None:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with postgres.cluster(settings=["fsync=off"]) as url:
        yield url


_numbers = itertools.count()


@pytest.fixture
def postgres_url(postgres_server) -> Iterator[str]:
    """An empty database on a server of our own."""
    from benchmarks.label import postgres

    with postgres.new_database(postgres_server, f"labels_{next(_numbers)}") as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def any_place(request, tmp_path) -> str:
    """Where a label store can be made: the same test on both databases."""
    return (
        str(tmp_path / "labels.sqlite")
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
