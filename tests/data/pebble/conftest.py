"""One corpus of the default sizes for all tests of this folder: it takes seconds to make."""

from __future__ import annotations

import pytest

from cairn.data.pebble import Corpus, generate


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return generate(0)
