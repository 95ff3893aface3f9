"""Every test here may call verbs on recipes of dummy stages: their kinds are known."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _dummy_kinds(dummies: Any) -> None:
    """The fixture `dummies`, for all tests of this folder."""
