"""Feed broken files to all parsers: only typed errors, no hang, no crash, no large allocation.

    python tools/faults/fuzz.py npz --runs 20000 --seed 0
    python tools/faults/fuzz.py npz --seed 0 --only 1234      # one input again, its traceback shown
    python tools/faults/fuzz.py npz --runs 20000 --guided     # by coverage: pip install '.[fuzz]'

Input i is a function of the parser, the seed and i. A child process parses the inputs; it may use
1 GiB more memory than it starts with, and 1 s of CPU time per input. A child that dies, or is stuck
for 10 s of CPU time and killed, is counted as well, and the next one continues behind that input.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY_BYTES = 1 << 30
CPU_S = 1.0
_STUCK_S = 10  # of CPU time, without an end, also not by the signal: within a library
_WAITING_S = 600  # of time in which it does nothing

sys.path[:0] = [str(Path(__file__).parents[2] / "tests" / "data"), str(Path(__file__).parent)]


def failure(parse: Callable[[bytes], object], content: bytes, full: bool = False) -> str | None:
    """What is wrong with how an input was read, or None."""
    from blockspike.cli import EXPECTED

    began_s, wrong = time.process_time(), None
    try:
        parse(content)
    except EXPECTED as error:
        refused = out_of_memory(error)
        wrong = refused and f"too much memory: {refused!r}"
    except Exception as error:
        if full:
            traceback.print_exc()
        calls = traceback.extract_tb(error.__traceback__)
        ours = [c for c in calls if "blockspike" in c.filename] or calls
        wrong = f"{type(error).__name__}: {error!s:.100} at {ours[-1].filename}:{ours[-1].lineno}"
    took_s = time.process_time() - began_s
    return wrong or (f"took {took_s:.1f} s of CPU time" if took_s > CPU_S else None)


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error, or one that it came from, that says so."""
    while error is not None:
        # HDF5's; buffers of metadata are not touched before the file proves to have their content.
        found = re.search("can't allocate|allocation failed for chunk", str(error), re.IGNORECASE)
        if found or isinstance(error, MemoryError):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def little_memory() -> Iterator[None]:
    """1 GiB more than now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * mmap.PAGESIZE + MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def read_range(name: str, seed: int, start: int, stop: int, at: mmap.mmap, out: int) -> None:
    """In a child: read inputs, and write what is wrong as JSON lines."""
    from parsers import PARSERS

    parser = PARSERS[name]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    warnings.simplefilter("ignore")
    for i in range(start, stop):
        at[:8] = i.to_bytes(8, "little")
        content = parser.made(seed, i)
        with little_memory():
            wrong = failure(parser.read, content)
        if wrong:
            os.write(out, (json.dumps([i, wrong]) + "\n").encode())
    at[:8] = stop.to_bytes(8, "little")


def fuzz(name: str, seed: int, n_runs: int, start: int = 0) -> list[tuple[int, str]]:
    """Read so many inputs; returns (input, what was wrong) of those that failed."""
    from parsers import PARSERS

    PARSERS[name].prepare()
    at = mmap.mmap(-1, 8)
    wrong: list[tuple[int, str]] = []
    at[:8] = start.to_bytes(8, "little")
    stop = start + n_runs
    while (begin := int.from_bytes(at[:8], "little")) < stop:
        status, lines = _child(name, seed, begin, stop, at)
        wrong += [(i, text) for i, text in map(json.loads, lines.splitlines())]
        died_at = int.from_bytes(at[:8], "little")
        if status:
            wrong.append((died_at, f"the process ended by {status}"))
            at[:8] = (died_at + 1).to_bytes(8, "little")
    return wrong


def _child(name: str, seed: int, begin: int, stop: int, at: mmap.mmap) -> tuple[str, str]:
    with tempfile.TemporaryFile() as found:
        pid = os.fork()
        if not pid:
            try:
                read_range(name, seed, begin, stop, at, found.fileno())
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        last, since, cpu_since_s = -1, time.monotonic(), 0.0
        while True:
            done, code = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            now_at = int.from_bytes(at[:8], "little")
            if now_at != last:
                last, since, cpu_since_s = now_at, time.monotonic(), _cpu_s(pid)
            elif _cpu_s(pid) - cpu_since_s > _STUCK_S or time.monotonic() - since > _WAITING_S:
                os.kill(pid, signal.SIGABRT)  # shows where
            time.sleep(0.01)
        found.seek(0)
        ended = os.waitstatus_to_exitcode(code)
        status = "" if not ended else signal.Signals(-ended).name if ended < 0 else str(ended)
        return status, found.read().decode()


def _cpu_s(pid: int) -> float:
    """CPU time of a process that has not been waited for; others may take the cores meanwhile."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def guided(name: str, seed: int, n_runs: int) -> None:
    """In a process of its own: by coverage of our code, with the same changes to inputs."""
    import atheris  # pyright: ignore

    os.environ["NUMBA_DISABLE_JIT"] = "1"  # it cannot compile what is instrumented
    with atheris.instrument_imports(include=["blockspike"]):  # pyright: ignore
        from parsers import PARSERS
    parser = PARSERS[name]
    parser.prepare()
    warnings.simplefilter("ignore")
    counts = {"inputs": 0, "wrong": 0}

    def one(content: bytes) -> None:
        counts["inputs"] += 1
        with little_memory():
            wrong = failure(parser.read, content)
        if wrong:
            counts["wrong"] += 1
            print(json.dumps([content.hex()[:2000], wrong]), flush=True)
        if counts["inputs"] >= n_runs:
            print(f"{name}: guided, {counts}", flush=True)
            os._exit(bool(counts["wrong"]))

    def change(content: bytes, most: int, seed: int) -> bytes:
        return parser.changed(content, random.Random(seed))[:most]

    corpus = Path(tempfile.mkdtemp())
    for i, content in enumerate(parser.seeds):
        (corpus / str(i)).write_bytes(content)
    arguments = [sys.argv[0], f"-seed={seed + 1}", "-max_len=200000", "-rss_limit_mb=0",
                 "-timeout=60", "-verbosity=0", str(corpus)]  # fmt: skip
    atheris.Setup(arguments, one, custom_mutator=change)
    atheris.Fuzz()


def main() -> int:
    """Print a line a parser; exit code 1 if anything was wrong."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("parser", nargs="?", default="all")
    arguments.add_argument("--runs", type=int, help="inputs, of each its usual number by default")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", type=int)
    arguments.add_argument("--guided", action="store_true")
    asked = arguments.parse_args()
    if asked.guided:
        guided(asked.parser, asked.seed, asked.runs or 20_000)
    from parsers import PARSERS

    names = list(PARSERS) if asked.parser == "all" else [asked.parser]
    n_wrong = 0
    for name in names:
        parser = PARSERS[name]
        if asked.only is not None:
            parser.prepare()
            content = parser.made(asked.seed, asked.only)
            Path("fuzz_input").write_bytes(content)
            print(f"{len(content)} bytes in fuzz_input", failure(parser.read, content, full=True))
            continue
        began, n_runs = time.monotonic(), asked.runs or parser.n_runs
        wrong = fuzz(name, asked.seed, n_runs)
        seconds = time.monotonic() - began
        print(f"{name}: {n_runs} inputs, {len(wrong)} wrong, {seconds:.0f} s, seed {asked.seed}")
        for i, text in wrong[:20]:
            print(f"  --only {i}: {text}")
        sys.stdout.flush()
        n_wrong += len(wrong)
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
