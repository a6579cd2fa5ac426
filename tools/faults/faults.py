"""Faults in every command: afterwards it ends in the same result, or says in a line what is wrong.

`make faults`, or `python tools/faults/faults.py [--short] [--only WORD] [--csv FILE]`, with the
seed in FAULT_SEED. A fault's outcome is one of

- unharmed: the command finished with the right result all the same;
- recovered: it was killed or failed, the same command again ended in the right result;
- refused: it stopped with exit code 2 and one line, and did so until the cause was removed; then
  the same command ended in the right result;
- LOST: the same command does not get there, hangs, or shows a traceback;
- WRONG: it says that it is done and a number, weight or file differs from the undisturbed run, or a
  damaged file is where a good one should.
"""

import argparse
import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from forked import (
    Done,
    Forked,
    at_each_write,
    at_write,
    clock_off,
    die,
    full_disk,
    in_fork,
    run,
    small_files,
    without_override,
)
from scenarios import (
    RUN,
    Scenario,
    Server,
    damaged,
    make_bases,
    make_later_scenarios,
    make_scenarios,
    outcome,
    write_cell,
)
from served import use_server

from blockspike.files import read_json
from blockspike.runs.sweeps import run_states

Kill = signal.Signals
_KILLS = (Kill.SIGKILL, Kill.SIGTERM, Kill.SIGINT)
_BAD = ("LOST", "WRONG")


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        scenario: what is run.
        kind, detail: for the table.
        disturb: runs the command in a folder, disturbed; returns what it left.
        repair: removes the cause that stays, or None if none does.
        must_refuse: whether continuing without a message would be wrong.
        words: that the command must say.
    """

    scenario: Scenario
    kind: str
    detail: str
    disturb: Callable[[Path], Done]
    repair: Callable[[Path], Any] | None = None
    must_refuse: bool = False
    words: str = ""
    is_signal: bool = False


@dataclass
class Harness:
    """The scenarios, their undisturbed outcomes, and a folder to work in."""

    root: Path
    rng: random.Random
    scenarios: dict[str, Scenario] = field(default_factory=dict)
    right: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Where the disturbed command works."""
        return self.root / "work"

    def add(self, scenario: Scenario, like: str | None = None) -> Scenario:
        """Run it undisturbed and keep its outcome, or take that of another."""
        self.scenarios[scenario.name] = scenario
        if like is not None:
            self.right[scenario.name] = self.right[like]
            return scenario
        folder = scenario.copy(self.root / "right" / scenario.name.replace(" ", "_"))
        if scenario.name == "sweep":
            done = self.as_process(scenario, folder).finish()
        else:
            done = run(scenario.args, folder, self.server_of(scenario))
        assert done.code == 0, f"{scenario.name}: {done.out}{done.err}"
        self.right[scenario.name] = in_fork(lambda: outcome(folder))
        self.seconds[scenario.name] = done.seconds
        return scenario

    def after(self, name: str) -> Path:
        """The folder that an undisturbed run left."""
        return self.root / "right" / name

    def server_of(self, scenario: Scenario) -> Callable[[], None] | None:
        """What a fork needs to find its server."""
        return use_server if scenario.name.startswith("download") else None

    def as_process(self, scenario: Scenario, folder: Path) -> "Process":
        """`blockspike …` with an interpreter of its own."""
        return Process((*scenario.program, *scenario.args), folder)

    def again(self, scenario: Scenario, folder: Path) -> Done:
        """The same command, undisturbed."""
        if scenario.name.startswith("sweep"):
            return self.as_process(scenario, folder).finish()
        return run(scenario.args, folder, self.server_of(scenario))

    def n_points(self, scenario: Scenario) -> int:
        """How often it opens a file for writing, syncs or renames."""
        if scenario.name not in self.points:
            folder = scenario.copy(self.work)
            log = self.root / "points"
            with log.open("wb", buffering=0) as file:
                count = at_each_write(lambda: file.write(b"."), folder)
                run(scenario.args, folder, _both(self.server_of(scenario), count))
            self.points[scenario.name] = log.stat().st_size
        return self.points[scenario.name]

    def judge(self, fault: Fault) -> tuple[str, str]:
        """Inject the fault; its outcome and, if it is bad, why."""
        scenario, folder = fault.scenario, fault.scenario.copy(self.work)
        right = self.right[scenario.name]
        done = fault.disturb(folder)
        if done.code == 124:
            return "LOST", "it hangs"
        if not fault.is_signal and done.code not in (0, -9) and not done.is_clear:
            return "LOST", f"exit code {done.code}: {done.err[-1500:]}"
        if fault.words not in done.out + done.err:
            return "LOST", f"does not say {fault.words!r}: {done.err[-300:]}"
        if done.code == 0 and fault.must_refuse:
            return "WRONG", f"not refused: {done.out[-300:]}"
        if done.code == 0:
            return self._compared("unharmed", right, folder)
        if fault.repair is None and (bad := in_fork(lambda: damaged(folder))):
            return "WRONG", f"damaged files: {bad}"
        if fault.repair is not None:
            fault.repair(folder)
        again = self.again(scenario, folder)
        if again.code != 0:
            return "LOST", f"again: exit code {again.code}: {again.err[-1500:]}"
        result = "refused" if done.code == 2 and fault.repair is not None else "recovered"
        return self._compared(result, right, folder)

    def _compared(self, result: str, right: Any, folder: Path) -> tuple[str, str]:
        try:
            found = in_fork(lambda: outcome(folder))
        except Exception as error:
            return "WRONG", f"damaged: {error!r}"
        keys = sorted(k for k in right.keys() | found.keys() if right.get(k) != found.get(k))
        if not keys:
            return result, ""
        first = keys[0]
        return "WRONG", f"{keys}: {right.get(first)!s:.500} → {found.get(first)!s:.500}"


class Process:
    """A command in an interpreter and a group of its own."""

    def __init__(self, command: tuple[str, ...], folder: Path):
        self.start = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, restore_signals=True,
        )  # fmt: skip

    def finish(self, send: Kill | None = None, after_s: float = 0.0) -> Done:
        """Its end, by itself or by a signal after so many seconds."""
        if send is not None:
            try:
                self.process.wait(after_s)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, send)
        try:
            out, err = self.process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            out, err = self.process.communicate()
            return Done(124, out, err)
        seconds = time.monotonic() - self.start
        _wait_for_group(self.process.pid)
        return Done(self.process.returncode, out, err, seconds)


def _wait_for_group(group: int) -> None:
    """Until what a killed sweep started is gone, too."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.05)


def _both(*functions: Callable[[], Any] | None) -> Callable[[], None]:
    def call() -> None:
        for function in functions:
            if function is not None:
                function()

    return call


# The faults.


def killed_processes(h: Harness, numbers: dict[str, int]) -> Iterator[Fault]:
    """Real processes, at a random moment of their second half: the first half are imports."""
    for name, number in numbers.items():
        scenario = h.scenarios[name]
        whole = h.as_process(scenario, scenario.copy(h.work)).finish()
        assert whole.code == 0, whole.err
        for i in range(number):
            send, after_s = _KILLS[i % 3], h.rng.uniform(0.45, 1.0) * whole.seconds
            yield Fault(
                scenario, f"process {send.name}", f"after {after_s:.2f} s of {whole.seconds:.2f}",
                lambda folder, s=scenario, send=send, t=after_s: h.as_process(s, folder).finish(
                    send, t
                ),
                is_signal=True,
            )  # fmt: skip


def killed_children(h: Harness, number: int) -> Iterator[Fault]:
    """Only the job of a sweep, not the sweep."""
    scenario = h.scenarios["sweep"]

    def disturb(folder: Path, send: Kill, after_s: float) -> Done:
        process = h.as_process(scenario, folder)
        pids: list[int] = []
        while not pids and process.process.poll() is None:
            for path in folder.rglob("status.json"):
                status = read_json(path)
                pids += [status["pid"]] if status["state"] == "running" else []
            time.sleep(0.01)
        time.sleep(after_s)
        for pid in pids[:1]:
            try:
                os.kill(pid, send)
            except ProcessLookupError:
                continue
        return process.finish()

    for i in range(number):
        send, after_s = _KILLS[i % 3], h.rng.uniform(0, 1.0)
        yield Fault(
            scenario, f"child {send.name}", f"{after_s:.2f} s after its start",
            lambda folder, send=send, t=after_s: disturb(folder, send, t), is_signal=True,
        )  # fmt: skip


def at_points(
    h: Harness, names: tuple[str, ...], number: int, kind: str, act: Callable[[], None]
) -> Iterator[Fault]:
    """At the n-th write of each command, for n spread over all of them."""
    for name in names:
        scenario, last = h.scenarios[name], h.n_points(h.scenarios[name])
        chosen = sorted(h.rng.sample(range(1, last + 1), min(number, last)))
        for n in chosen:
            yield Fault(
                scenario, kind, f"at write {n} of {last}",
                lambda folder, s=scenario, n=n: run(
                    s.args, folder, _both(h.server_of(s), at_write(n, act, folder))
                ),
            )  # fmt: skip


def limited_sizes(h: Harness, names: tuple[str, ...], number: int) -> Iterator[Fault]:
    """Files that cannot grow: writes end in the middle."""
    for name in names:
        scenario = h.scenarios[name]
        for _ in range(number):
            n_bytes = round(10 ** h.rng.uniform(1, 5))
            yield Fault(
                scenario, "file size limit", f"{n_bytes} bytes",
                lambda folder, s=scenario, n=n_bytes: run(
                    s.args, folder, _both(h.server_of(s), small_files(n))
                ),
            )  # fmt: skip


def full_disks(h: Harness, names: tuple[str, ...], number: int) -> Iterator[Fault]:
    """A small disk of its own with so much left, where root can mount one."""
    if not _can_mount(h):
        print("left out: small disks, which only root can mount", flush=True)
        return
    for name in names:
        scenario = h.scenarios[name]
        for _ in range(number):
            left = round(10 ** h.rng.uniform(3.6, 5.3))

            def disturb(folder: Path, s: Scenario = scenario, left: int = left) -> Done:
                with _mounted(folder, s):
                    free = shutil.disk_usage(folder).free
                    filler = folder / ".filler"
                    filler.write_bytes(bytes(max(free - left, 0)))
                    done = run(s.args, folder, h.server_of(s))
                    filler.unlink()
                    if bad := in_fork(lambda: damaged(folder)):
                        return Done(1, "", f"damaged files: {bad}")
                    if done.code not in (0, 2):
                        return done
                    again = h.again(s, folder)
                    if done.code == 2 and not done.is_clear:
                        return done
                    shutil.copytree(folder, h.root / "kept", dirs_exist_ok=True)
                shutil.rmtree(folder)
                shutil.move(h.root / "kept", folder)
                return again if again.code else Done(0, "", "")

            yield Fault(scenario, "full disk (tmpfs)", f"{left} bytes left", disturb)


def _libc(name: str, *args: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class _mounted:  # noqa: N801
    """A tmpfs of 8 MB over the folder, with its content."""

    def __init__(self, folder: Path, scenario: Scenario):
        self.folder, self.scenario = folder, scenario

    def __enter__(self) -> None:
        options = b"size=8m"
        _libc("mount", b"tmpfs", os.fsencode(self.folder), b"tmpfs", 0, options)
        shutil.copytree(self.scenario.base, self.folder, dirs_exist_ok=True)

    def __exit__(self, *_: object) -> None:
        _libc("umount2", os.fsencode(self.folder), 2)


def _can_mount(h: Harness) -> bool:
    h.work.mkdir(exist_ok=True)
    try:
        _libc("mount", b"tmpfs", os.fsencode(h.work), b"tmpfs", 0, b"size=8m")
    except OSError:
        return False
    _libc("umount2", os.fsencode(h.work), 2)
    return True


def read_only(h: Harness, names: tuple[str, ...]) -> Iterator[Fault]:
    """A folder that may not be written."""

    def disturb(folder: Path, s: Scenario) -> Done:
        folders = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
        for path in folders:
            path.chmod(0o555)
        return run(s.args, folder, _both(h.server_of(s), without_override))

    def repair(folder: Path) -> None:
        for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
            path.chmod(0o755)

    for name in names:
        scenario = h.scenarios[name]
        yield Fault(
            scenario, "read-only folder", "", lambda folder, s=scenario: disturb(folder, s), repair,
            must_refuse=True, words="Permission denied",
        )  # fmt: skip


def two_processes(h: Harness, names: tuple[str, ...]) -> Iterator[Fault]:
    """The second on the same folder is refused with the first one's pid; the first continues."""

    def disturb(folder: Path, s: Scenario) -> Done:
        first = Forked(s.args, folder)
        while not any(p.stat().st_size for p in folder.rglob("status.json")):
            time.sleep(0.002)
        os.kill(first.pid, signal.SIGSTOP)
        second = run(s.args, folder)
        os.kill(first.pid, signal.SIGCONT)
        done = first.wait()
        stated = f"already running as process {first.pid}"
        if second.code != 2 or stated not in second.err or not second.is_clear:
            return Done(1, second.out, f"the second: {second.err}")
        return Done(done.code, done.out, done.err + stated)

    for name in names:
        scenario = h.scenarios[name]
        yield Fault(
            scenario, "two processes", "the first is stopped amid its run",
            lambda folder, s=scenario: disturb(folder, s), words="already running as process",
        )  # fmt: skip


def clocks(h: Harness, names: tuple[str, ...]) -> Iterator[Fault]:
    """The clock is set back between an interruption and the next start, or amid the run."""

    def disturb(folder: Path, s: Scenario, first_s: float, then_s: float) -> Done:
        n = max(h.n_points(s) * 2 // 3, 1) if s.name in h.points else 30
        run(s.args, folder, _both(clock_off(first_s), at_write(n, die, folder)))
        states = in_fork(lambda: run_states(folder / "outputs"))
        done = run(s.args, folder, clock_off(then_s))
        states = pd.concat([states, in_fork(lambda: run_states(folder / "outputs"))])
        seconds = states["seconds"].dropna()
        if (seconds < 0).any() or list(states["state"])[-1] != "done":
            return Done(1, "", f"status: {states.to_dict('records')}")
        return done

    for name in names:
        scenario = h.scenarios[name]
        for first_s, then_s in ((0.0, -86_400.0), (86_400.0, 0.0)):
            yield Fault(
                scenario, "clock set back", f"{first_s:+.0f} s, then {then_s:+.0f} s",
                lambda folder, s=scenario, a=first_s, b=then_s: disturb(folder, s, a, b),
            )  # fmt: skip


def damages(
    h: Harness, scenario: Scenario, files: dict[str, str], hows: tuple[str, ...]
) -> Iterator[Fault]:
    """Files of the folder, cut off or with a flipped bit.

    Args:
        files: path → what removes the cause: "itself" (nothing to do), "delete" or "restore".
    """
    for path, cure in files.items():
        for how in hows:
            place = h.rng.random()

            def disturb(
                folder: Path, path: str = path, how: str = how, place: float = place
            ) -> Done:
                _damage(folder / path, how, place)
                return h.again(scenario, folder)

            def repair(folder: Path, path: str = path, cure: str = cure) -> None:
                if cure == "delete":
                    (folder / path).unlink()
                elif cure == "restore":
                    shutil.copyfile(scenario.base / path, folder / path)

            file = Path(path).name
            yield Fault(
                scenario, how, f"{file} at {place:.3f}", disturb, repair,
            )  # fmt: skip


def _damage(path: Path, how: str, place: float) -> None:
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if how == "truncated":
        del content[at:]
    elif how == "emptied":
        content.clear()
    else:
        content[at] ^= 1 << (at % 8)
    path.write_bytes(content)


def changed(h: Harness, name: str, path: str, change: Callable[[Path], Any]) -> Iterator[Fault]:
    """Other data under the same name: refused with both hashes."""
    scenario = h.scenarios[name]

    def disturb(folder: Path) -> Done:
        change(folder / path)
        return h.again(scenario, folder)

    yield Fault(
        scenario, "data changed", path, disturb,
        lambda folder: shutil.copyfile(scenario.base / path, folder / path),
        must_refuse=True, words="the data have changed since the run started (SHA-256 ",
    )  # fmt: skip


def interrupted(h: Harness, name: str) -> Scenario:
    """A command that starts from what a killed one has left, late enough for checkpoints."""
    scenario = h.scenarios[name]
    base = scenario.copy(h.root / "bases" / f"{name}-interrupted")
    n = round(0.75 * h.n_points(scenario))
    done = run(scenario.args, base, at_write(n, die, base))
    assert done.code == -9, done.err
    return h.add(scenario.having(f"{name}, resumed", base), like=name)


def prepared(h: Harness, short: bool) -> None:
    """Run every command undisturbed, each in a folder that the earlier ones have made."""
    bases = in_fork(lambda: make_bases(h.root / "bases"))
    scenarios = make_scenarios(bases)
    h.add(scenarios["prepare"])
    shutil.copy(h.after("prepare") / "events.h5", bases["events"])
    h.add(scenarios["train"])
    if not short:
        for name in ("prepare shd", "download", "fit", "recovery", "sweep"):
            h.add(scenarios[name])
    finished, evaluated, collected = (
        h.after("train"),
        h.root / "right" / "evaluate",
        h.root / "right" / "collect",
    )
    later = make_later_scenarios(finished, evaluated, collected)
    for name in ("evaluate",) if short else later:
        h.add(later[name])


def the_faults(h: Harness, short: bool) -> Iterator[Fault]:
    """All of them, in the order of their kinds; a few of each if `short`."""
    writers = (
        "prepare", "prepare shd", "download", "train", "fit", "recovery", "evaluate", "figures",
        "collect", "report", "benchmark",
    )  # fmt: skip
    train = interrupted(h, "train")
    few = ("prepare", "train", "evaluate")
    chosen = few if short else writers
    yield from at_points(h, chosen, 1 if short else 5, "killed at a write", die)
    yield from at_points(h, chosen, 1 if short else 6, "full disk at a write", full_disk)
    yield from limited_sizes(h, ("train",) if short else writers, 1 if short else 3)
    yield from two_processes(h, ("train",) if short else ("train", "fit", "recovery"))
    yield from read_only(h, ("train",) if short else writers)
    yield from clocks(h, () if short else ("train", "fit"))
    yield from changed(h, train.name, "events.h5", lambda path: _other_events(h, path))
    bit, cut = ("bit flipped",), ("truncated", "bit flipped", "emptied")
    folder = f"{RUN}/"
    yield from damages(
        h, train, {folder + "checkpoints/last.ckpt": "itself"}, bit if short else cut
    )
    yield from damages(h, train, {"events.h5": "restore"}, bit if short else cut)
    if short:
        return
    fit = interrupted(h, "fit")
    yield from changed(h, fit.name, "cell.npz", _other_cell)
    yield from full_disks(h, writers, 2)
    yield from damages(
        h, train,
        {
            folder + "checkpoints/best.ckpt": "restore", folder + "metrics.csv": "itself",
            folder + "status.json": "itself", folder + "content.json": "delete",
            folder + "data.json": "delete", folder + "config.yaml": "itself",
        },
        cut,
    )  # fmt: skip
    done = h.scenarios["train"].having("train, finished", h.after("train"))
    h.add(done, like="train")
    yield from damages(h, done, {folder + "result.json": "delete"}, cut)
    yield from damages(
        h, h.scenarios["evaluate"],
        {
            folder + "checkpoints/best.ckpt": "restore", folder + "config.yaml": "restore",
            folder + "content.json": "restore", "events.h5": "restore",
            folder + "data.json": "restore",
        },
        cut,
    )  # fmt: skip
    files = {folder + name: "restore" for name in ("result.json", "evaluation.json")}
    yield from damages(h, h.scenarios["figures"], files | {folder + "activity.npz": "restore"}, cut)
    yield from damages(h, h.scenarios["collect"], {folder + "result.json": "restore"}, cut)
    yield from killed_processes(h, _PROCESSES)
    yield from killed_children(h, 6)


_PROCESSES = {
    "prepare": 6, "download": 6, "train": 9, "fit": 9, "sweep": 12, "evaluate": 6, "figures": 6,
    "collect": 3, "report": 3, "benchmark": 6, "status": 3,
}  # fmt: skip


def _other_events(h: Harness, path: Path) -> None:
    """Another good prepared file of the same sizes."""
    shutil.copyfile(h.root / "bases" / "other.h5", path)


def _other_cell(path: Path) -> None:
    in_fork(lambda: write_cell(path, seed=1))


def main() -> None:
    """Inject the faults, print a line each and the counts; exit code 1 if one is bad."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--short", action="store_true", help="a few, in less than a minute")
    parser.add_argument("--only", default="", help="faults whose line holds this word")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    options = parser.parse_args()
    seed = int(os.environ.get("FAULT_SEED", "0"))
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="faults") as temporary:
        server = None
        h = Harness(Path(temporary).resolve(), random.Random(seed))
        try:
            server = Server(h.root / "bases" / "raw")
            prepared(h, options.short)
            for fault in the_faults(h, options.short):
                row = {"command": fault.scenario.name, "kind": fault.kind, "detail": fault.detail}
                if options.only not in " ".join(row.values()):
                    continue
                result, why = h.judge(fault)
                rows.append(row | {"outcome": result, "why": why})
                values = ", ".join(row.values())
                print(f"{len(rows)} ({time.monotonic() - began:.0f} s) {values}: {result} {why}",
                      flush=True)  # fmt: skip
        finally:
            if server is not None:
                server.stop()
    table = pd.DataFrame(rows)
    if options.csv:
        table.to_csv(options.csv, index=False)
    print(table.drop(columns="why").to_csv(index=False))
    counts = table.groupby(["command", "kind"])["outcome"].value_counts().unstack(fill_value=0)
    print(counts.to_string())
    bad = pd.DataFrame(table[table["outcome"].isin(_BAD)])
    for row in bad.to_dict("records"):
        print(f"{row['outcome']}: {row['command']}, {row['kind']}, {row['detail']}: {row['why']}")
    totals = ", ".join(f"{n} {name}" for name, n in table["outcome"].value_counts().items())
    print(f"seed {seed}: {len(table)} faults in {time.monotonic() - began:.0f} s: {totals}")
    sys.exit(1 if len(bad) else 0)


if __name__ == "__main__":
    main()
