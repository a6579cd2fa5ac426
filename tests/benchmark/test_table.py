"""The benchmark's file survives a kill: it holds whole measurements only."""

import pytest

from blockspike.benchmark.table import RowFile


@pytest.fixture
def file(tmp_path):
    return RowFile(tmp_path / "there" / "rows.jsonl")


def test_rows_are_read_back_and_found(file):
    assert file.rows() == [] and file.find({"a": 1}) == []
    file.add([{"a": 1, "b": "x"}, {"a": 2, "b": "x"}])
    file.add([{"a": 1, "c": None}])
    assert file.rows() == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}, {"a": 1, "c": None}]
    assert file.find({"a": 1, "b": "x"}) == [{"a": 1, "b": "x"}]


@pytest.mark.parametrize("n_bytes", [1, 5, 20])
def test_a_line_cut_short_by_a_kill_is_ignored_and_overwritten(file, n_bytes):
    file.add([{"a": 1}])
    whole = file.path.read_bytes()
    file.add([{"a": 2}, {"a": 3}])
    file.path.write_bytes(file.path.read_bytes()[: len(whole) + n_bytes])
    assert file.rows() == [{"a": 1}]
    file.add([{"a": 4}])
    assert file.rows() == [{"a": 1}, {"a": 4}]
