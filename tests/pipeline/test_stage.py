"""Kinds of stages are found by their files' names, without importing them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cairn.config import Config
from cairn.errors import UserError
from cairn.pipeline.stage import Stage, find_stage, kinds, register, unregister


def test_every_kind_of_the_package_can_be_found_and_is_named_like_its_file() -> None:
    for kind in set(kinds()) - {"lines", "fault"}:
        stage = find_stage(kind)
        assert stage.kind == kind
        assert issubclass(stage.config, Config)
        assert stage.config.__doc__


def test_listing_kinds_imports_none() -> None:
    code = "import sys; from cairn.pipeline.stage import kinds; print(kinds(), [m for m in sys.modules if '.stages.' in m])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'train'" in out
    assert out.strip().endswith("[]")


def test_a_kind_from_elsewhere_is_known_until_it_is_forgotten() -> None:
    class Empty(Config):
        """Nothing."""

    @register
    class Mine(Stage):
        kind = "mine"
        config = Empty

    assert isinstance(find_stage("mine"), Mine)
    assert "mine" in kinds()
    unregister("mine")
    with pytest.raises(UserError, match="unknown kind of stage 'mine'"):
        find_stage("mine")


@pytest.mark.parametrize("kind", ["../stage", "os.path", "trian", ""])
def test_an_unknown_kind_is_told(kind: str) -> None:
    with pytest.raises(UserError) as caught:
        find_stage(kind, where="a.yaml, line 3")
    assert caught.value.where == "a.yaml, line 3"
    assert "train" in caught.value.remedy
