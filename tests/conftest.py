"""Tiny real models and the development data, shared by all tests."""

import os
import signal
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
