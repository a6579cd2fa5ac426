"""The benchmark's rows survive a kill: whole measurements or none."""

import pytest

from blockspike.benchmark.table import RowFile


@pytest.fixture
def file(tmp_path):
    return RowFile(tmp_path / "there" / "rows.jsonl")


def test_rows_come_back_and_are_found(file):
    assert file.rows() == [] and file.find({"a": 1}) == []
    file.add([{"a": 1, "b": "x"}, {"a": 2, "b": "x"}])
    file.add([{"a": 1, "c": None}])
    assert file.rows() == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}, {"a": 1, "c": None}]
    assert file.find({"a": 1, "b": "x"}) == [{"a": 1, "b": "x"}]


@pytest.mark.parametrize("n_bytes", [1, 5, 20])
def test_what_a_kill_cut_short_is_left_out_and_written_over(file, n_bytes):
    file.add([{"a": 1}])
    whole = file.path.read_bytes()
    file.add([{"a": 2}, {"a": 3}])
    file.path.write_bytes(file.path.read_bytes()[: len(whole) + n_bytes])
    assert file.rows() == [{"a": 1}]
    file.add([{"a": 4}])
    assert file.rows() == [{"a": 1}, {"a": 4}]
