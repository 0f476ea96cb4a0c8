"""Harness of every benchmark: options from a function's parameters, the machine, calls in turns, bounds, and what a process used.

A benchmark is a module with a function whose parameters are its options:

    def run(file: Path, *, rows: Annotated[int, "of the table"] = 1_000, sizes: tuple[int, ...] = (1, 16)) -> None: ...

    if __name__ == "__main__":
        main(run, "torch")

A parameter without a default is an argument, any other an option; several values stand side by side or between commas. Exit codes: 0, each
`bound` held, or there is none; 1, one broke, or the result is False; 2, nothing was measured. `--save FILE` keeps what was printed.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import httpx
import numpy as np

from toque.load.scenarios.target import NotPossible

__all__ = [
    "GIB", "MIB", "NotPossible", "Ratio", "Stopwatch", "Timing", "bound", "family_bytes", "greatest", "greatest_mib",
    "in_child", "in_turns", "line", "main", "own_bytes", "parser_of", "say", "seconds_of", "temporary", "timed",
    "timed_in_turns",
]  # fmt: skip

MIB, GIB = 1 << 20, 1 << 30
Key = TypeVar("Key")
Result = TypeVar("Result")
_SAID: list[str] = []
_BOUNDS: list[bool] = []


def main(run: Callable[..., bool | None], *packages: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a benchmark as the command line says, and end the process with its exit code.

    packages: whose versions belong to its figures.
    """
    parser = parser_of(run)
    options = vars(parser.parse_args(arguments))
    file: Path | None = options.pop("save")
    for name, value in options.items():
        if isinstance(value, list):
            options[name] = tuple(itertools.chain.from_iterable(value))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then too
    say(machine(*packages))
    _BOUNDS.clear()
    begun = time.perf_counter()
    try:
        passed = run(**options)
    except (NotPossible, httpx.HTTPError, ConnectionError) as error:
        print(f"nothing was measured: {error or type(error).__name__}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("interrupted; what was started has been ended")
    held = f", {sum(_BOUNDS)} of {len(_BOUNDS)} bounds held" if _BOUNDS else ""
    say(f"# {time.perf_counter() - begun:.0f} s, load {os.getloadavg()[0]:.1f}{held}")
    if file is not None:
        file.write_text(json.dumps({"lines": _SAID}, indent=1) + "\n")
    sys.exit(passed is False or not all(_BOUNDS))


def parser_of(run: Callable[..., object]) -> argparse.ArgumentParser:
    """Make the parser of a benchmark from the parameters of its function, whose help is annotated."""
    description, formatter = sys.modules[run.__module__].__doc__, argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter, allow_abbrev=False)
    hints = typing.get_type_hints(run, include_extras=True)
    for name, parameter in inspect.signature(run).parameters.items():
        _add(parser, name, hints[name], parameter)
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep what is printed as JSON")
    return parser


def _add(parser: argparse.ArgumentParser, name: str, hint: Any, parameter: inspect.Parameter) -> None:
    options: dict[str, Any] = {}
    if typing.get_origin(hint) is typing.Annotated:
        hint, about = typing.get_args(hint)
        options["help"] = about.replace("%", "%%")
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        (hint,) = (one for one in typing.get_args(hint) if one is not type(None))
    is_argument = parameter.kind is not parameter.KEYWORD_ONLY
    flag = name if is_argument else f"--{name.replace('_', '-')}"
    if (default := parameter.default) is not parameter.empty:
        options["default"] = [default] if isinstance(default, tuple) else default
    elif not is_argument:
        options["required"] = True
    if hint is bool:
        parser.add_argument(flag, action="store_true", **options)
        return
    many = typing.get_origin(hint) is tuple
    if many:
        hint, options["nargs"] = typing.get_args(hint)[0], "*" if is_argument else "+"
    if typing.get_origin(hint) is Literal and not many:
        options["choices"] = typing.get_args(hint)
    if is_argument and not many and "default" in options:
        options["nargs"] = "?"
    options |= {"type": _several(hint) if many else str if "choices" in options else hint}
    parser.add_argument(flag, **options)


def _several(hint: Any) -> Callable[[str], list[Any]]:
    choices = typing.get_args(hint)

    def values(text: str) -> list[Any]:
        parts = [(str if choices else hint)(part) for part in text.split(",")]
        if wrong := set(parts) - set(choices or parts):
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: want some of {', '.join(choices)}")
        return parts

    return values


def machine(*packages: str) -> str:
    """Name the processor, cores, load average, Python and the packages that matter."""
    model = platform.machine()
    if (file := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2] for line in file.read_text().splitlines() if "model name" in line]
        model = names[0].strip() if names else model
    versions = "".join(f", {name} {version(name)}" for name in packages)
    cores, load = os.cpu_count(), os.getloadavg()[0]
    return f"# {model}, {cores} cores, load {load:.1f}, Python {platform.python_version()}{versions}"


def say(text: str) -> None:
    """Print a line at once, and keep it for `--save`."""
    _SAID.append(text)
    print(text, flush=True)


def bound(what: str, value: float, *, most: float | None = None, least: float | None = None) -> bool:
    """Print a figure beside its bound, and keep for the exit code whether it holds, which no NaN does; returns that."""
    passed = (most is None or value <= most) and (least is None or value >= least) and not np.isnan(value)
    _BOUNDS.append(bool(passed))
    limits = " and ".join(
        f"{sign} {limit:.4g}" for sign, limit in (("<=", most), (">=", least)) if limit is not None
    )
    say(f"{'held  ' if passed else 'BROKEN'} {value:10.4f} {limits:>10}  {what}")
    return bool(passed)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a repeated call, at three quantiles."""

    p20_s: float
    p50_s: float
    p80_s: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Take the quantiles of some calls."""
        return cls(*map(float, np.quantile(seconds, [0.2, 0.5, 0.8])))

    def __str__(self) -> str:
        return " / ".join(f"{seconds * 1e3:9.3f}" for seconds in (self.p20_s, self.p50_s, self.p80_s)) + " ms"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratios of two sides that took turns: the median over rounds, the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], base: Sequence[float]) -> Ratio:
        """Divide the results of each round by those of the base in the same round."""
        shares = np.array(ours) / np.array(base)
        return cls(float(np.median(shares)), float(shares.min()), float(shares.max()))

    def __str__(self) -> str:
        return f"{self.median:.3f} x ({self.low:.3f} to {self.high:.3f})"


def seconds_of(call: Callable[[], object]) -> float:
    """Time one call by the clock."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def timed(call: Callable[[], object], *, repeats: int = 9) -> Timing:
    """Time a call `repeats` times after one warm-up."""
    call()
    return Timing.of([seconds_of(call) for _ in range(repeats)])


def in_turns(
    calls: Mapping[Key, Callable[[], Result]], rounds: int, *, warm_ups: int = 0
) -> dict[Key, list[Result]]:
    """Make all calls once a round, every second round in reverse, so that a noisy neighbour hits all; warm-ups do not count."""
    results: dict[Key, list[Result]] = {name: [] for name in calls}
    for number in range(-warm_ups, rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            result = calls[name]()
            if number >= 0:
                results[name].append(result)
    return results


def timed_in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, *, warm_ups: int = 1
) -> dict[str, Timing]:
    """Time each of several calls, in turns."""
    clocks = {name: (lambda call=call: seconds_of(call)) for name, call in calls.items()}
    return {name: Timing.of(seconds) for name, seconds in in_turns(clocks, rounds, warm_ups=warm_ups).items()}


def line(what: str, timing: Timing, base: Timing | None = None, *, rows: int | None = None) -> None:
    """Print a timing: its quantiles, how many times as fast as the base it is, and rows a second."""
    speed = "" if base is None else f"  {base.p50_s / timing.p50_s:8.2f} x as fast"
    rate = "" if rows is None else f"  {rows / timing.p50_s:14,.0f} rows/s"
    say(f"{timing}{speed}{rate}  {what}")


@dataclass
class Stopwatch:
    """Clock and processor time of this process since it was made, its ended children's included."""

    begun: float = field(default_factory=time.perf_counter)
    used: float = field(default_factory=lambda: sum(os.times()[:4]))

    @property
    def wall_s(self) -> float:
        """Seconds by the clock since then."""
        return time.perf_counter() - self.begun

    @property
    def cpu_s(self) -> float:
        """Seconds of processors since then."""
        return sum(os.times()[:4]) - self.used


def greatest_mib() -> float:
    """Read the greatest resident size that this process ever had, mapped files among it, but not what its parent had."""
    return _status_bytes("VmHWM") / MIB


def own_bytes() -> int:
    """Read the memory that this process has for itself, without mapped files and shared memory."""
    return _status_bytes("RssAnon")


def _status_bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) << 10 for text in status if text.startswith(name))


def family_bytes() -> int:
    """Read the memory of this process and its descendants, shared pages split among processes."""
    import psutil  # late: only who develops has it

    total = 0
    for member in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            total += member.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


@contextmanager
def greatest(read: Callable[[], int], *, every_s: float = 0.05) -> Iterator[list[int]]:
    """Sample a figure in a thread while the block runs; the greatest stands in the list once it has ended."""
    ended, samples = threading.Event(), [read()]

    def watch() -> None:
        while not ended.wait(every_s):
            samples[0] = max(samples[0], read())

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield samples
    finally:
        ended.set()
        watching.join()


@contextmanager
def temporary(parent: Path | str | None = None) -> Iterator[Path]:
    """Make a folder that is removed after the block."""
    with tempfile.TemporaryDirectory(prefix="toque-bench-", dir=parent) as folder:
        yield Path(folder).resolve()


def in_child(
    call: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
) -> Any:
    """Call a module's function in a process of its own, for what its memory or its imports cost; values pass as JSON.

    before: words that start a program, in front of the interpreter. Raises: NotPossible with the end of what it said.
    """
    module = sys.modules[call.__module__]
    name = module.__spec__.name if module.__spec__ is not None else call.__module__
    code = (
        f"import json, sys\nfrom {name} import {call.__name__} as call\n"
        "print('\\n' + json.dumps(call(*json.loads(sys.stdin.read()))))"
    )
    command, own = [*before, sys.executable, "-c", code], os.environ | (environment or {})
    done = subprocess.run(
        command, input=json.dumps(arguments), env=own, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotPossible(f"{name}.{call.__name__}{arguments} failed: {done.stderr[-3_000:]}")
    *said, result = done.stdout.rstrip().splitlines()
    for text in filter(None, said):
        say(text)
    return json.loads(result)
