"""An app over an empty store, for every test of the pages."""

import pytest

from web.visiting import open_place


@pytest.fixture
def place(tmp_path):
    opened = open_place(tmp_path)
    yield opened
    opened.database.close()
