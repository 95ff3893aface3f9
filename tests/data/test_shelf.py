"""Rows that one process prepared and others read."""

from __future__ import annotations

import pytest

from cairn.data import shelf
from cairn.data.encode import document
from cairn.errors import UserError


def test_documents_come_back_as_they_were_and_older_ones_go(tmp_path):
    shelf.put(tmp_path / "rows", [[document([9], [1])]] * 12)
    sources = [[document([1, 2, 3], [0, 1, 1]), document([4], [0])], [], [document([5, 6], [1, 0])]]
    shelf.put(tmp_path / "rows", sources)
    back = shelf.take(tmp_path / "rows")
    for found, given in zip(back, sources, strict=True):
        assert [(d.ids.tolist(), d.mask.tolist()) for d in found] == [(d.ids.tolist(), d.mask.tolist()) for d in given]
    assert back[0][0].ids.dtype == sources[0][0].ids.dtype
    assert [p.name for p in tmp_path.iterdir()] == ["rows"]


def test_a_folder_that_another_machine_does_not_see_is_told(tmp_path):
    with pytest.raises(UserError, match="prepared cannot be read") as caught:
        shelf.take(tmp_path / "gone")
    assert "share" in caught.value.remedy
