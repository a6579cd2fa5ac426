"""The line that says why a first call takes long."""

import time
from types import SimpleNamespace
from typing import Any

from blockspike.neurons.cpu import kernels
from blockspike.neurons.cpu.kernels import Announcement


def compiled_in(module: str) -> Any:
    function = SimpleNamespace(__module__=module)
    return SimpleNamespace(data={"dispatcher": SimpleNamespace(py_func=function)})


def test_it_is_made_once_where_somebody_watches(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "_SLOW_S", 0.05)
    announcement, ours = Announcement(), compiled_in("blockspike.neurons.cpu.fused")

    def compile_for(seconds: float, event: Any = ours) -> str:
        announcement.on_start(event)
        announcement.on_start(compiled_in("my_lab.neurons"))  # a step within a kernel
        announcement.on_end(event)
        time.sleep(seconds)
        announcement.on_end(event)
        return capsys.readouterr().err

    assert compile_for(0.5) == ""  # into a file
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert compile_for(0.0) == "" and compile_for(0.5, compiled_in("numba.np")) == ""
    assert compile_for(0.5).startswith("blockspike: compiling kernels")
    assert compile_for(0.5) == ""
