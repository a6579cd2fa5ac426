"""The log file of a run: complete, appended, and without effect on the terminal."""

import logging
import warnings

import pytest

from blockspike.runs.log import logged_to


def test_records_and_warnings_are_appended(tmp_path, capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # as outside of pytest
    shown: list[str] = []
    monkeypatch.setattr(
        warnings, "showwarning", lambda message, *_, **__: shown.append(str(message))
    )
    file = tmp_path / "train.log"
    for word in ("one", "two"):
        with logged_to(file, f"start {word}"), warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.getLogger("library").warning("a record %s", word)
            logging.getLogger("blockspike.part").info("a line %s", word)
            logging.getLogger("library").info("a detail")
            warnings.warn(f"a warning {word}", stacklevel=1)
    assert not root.handlers
    text = file.read_text()
    for word in ("start", "a record", "a line", "UserWarning: a warning"):
        assert [f"{word} one" in text, text.count(f"{word} two")] == [True, 1]
    assert text.count(": done") == 2 and "a detail" not in text
    printed = capsys.readouterr().err
    assert printed.count("a record") == 2 and shown == ["a warning one", "a warning two"]
    assert "a line" not in printed and "start" not in printed


def test_an_error_is_the_last_line(tmp_path):
    show = warnings.showwarning
    with pytest.raises(ValueError, match="broken"), logged_to(tmp_path / "train.log", "start"):
        raise ValueError("broken")
    assert (tmp_path / "train.log").read_text().endswith("ended: ValueError: broken\n")
    assert warnings.showwarning is show
