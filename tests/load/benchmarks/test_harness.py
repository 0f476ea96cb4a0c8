"""The harness of the benchmarks: options from parameters, exit codes from bounds, rounds in turns, work in a process of its own."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated, Literal

import pytest

from toque.load.benchmarks import harness
from toque.load.benchmarks.harness import NotPossible, Ratio, bound, in_child, in_turns, main


def benchmark(
    file: Path,
    *,
    rows: Annotated[int, "90 % of them"] = 5,
    sizes: tuple[int, ...] = (1, 16),
    cases: tuple[Literal["a", "b"], ...] = ("a", "b"),
    folder: Path | None = None,
    at_once: bool = False,
) -> bool:
    harness.say(json.dumps([str(file), rows, sizes, cases, str(folder), at_once]))
    return rows < 10


def options_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, list[object]]:
    with pytest.raises(SystemExit) as end:
        main(benchmark, arguments=arguments)
    return end.value.code, json.loads(capsys.readouterr().out.splitlines()[1])


def test_parameters_are_options_and_a_broken_bound_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert options_of(capsys, "f") == (False, ["f", 5, [1, 16], ["a", "b"], "None", False])
    given = ["f", "--rows", "10", "--sizes", "1,2", "3", "--cases", "b", "--folder", "g", "--at-once"]
    assert options_of(capsys, *given) == (True, ["f", 10, [1, 2, 3], ["b"], "g", True])


@pytest.mark.parametrize("wrong", [["--row", "1"], ["--cases", "a,c"], ["--rows", "x"], []])
def test_what_is_no_option_is_refused(capsys: pytest.CaptureFixture[str], wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(benchmark, arguments=["f", *wrong] if wrong else [])
    assert capsys.readouterr().err


def test_what_was_printed_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(benchmark, "numpy", arguments=["f", "--save", str(tmp_path / "kept.json")])
    lines = json.loads((tmp_path / "kept.json").read_text())["lines"]
    assert lines[-3:] == capsys.readouterr().out.splitlines()
    assert "numpy" in lines[-3]


def test_a_benchmark_that_could_not_measure_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    def impossible() -> None:
        raise NotPossible("no wrk")

    with pytest.raises(SystemExit, match="2"):
        main(impossible, arguments=[])
    assert "nothing was measured: no wrk" in capsys.readouterr().err


@pytest.mark.parametrize("values", [(0.1, 0.2), (0.2, 0.1), (0.1, 0.1)])
def test_any_bound_that_broke_ends_with_1_and_none_of_an_earlier_run(values: tuple[float, float]) -> None:
    def measuring() -> None:
        for value in values:
            bound("a figure", value, most=0.1)

    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main(measuring, arguments=[])
        assert end.value.code == (0.2 in values)
    with pytest.raises(SystemExit) as end:
        main(lambda: None, arguments=[])
    assert end.value.code == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.2])
def test_a_figure_that_is_no_number_breaks_its_bound(value: float) -> None:
    assert not bound("a figure", value, most=0.1)
    assert bound("a figure", 0.1, most=0.1)
    assert bound("a figure", 0.2, least=0.1)
    assert not bound("a figure", math.nan, least=0.1)


def test_sides_take_turns_and_warm_ups_do_not_count() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name) or len(order)) for name in "ab"}
    assert in_turns(calls, 2, warm_ups=1) == {"a": [3, 6], "b": [4, 5]}
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert str(Ratio.of([2.0, 9.0, 3.0], [1.0, 3.0, 3.0])) == "2.000 x (1.000 to 3.000)"


def doubled(value: int) -> list[int]:
    harness.say("said by the child")
    return [2 * value, os.getpid()]


def failing() -> None:
    raise ValueError("no flour")


def test_a_function_is_called_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    value, pid = in_child(doubled, 4)
    assert value == 8
    assert pid != os.getpid()
    assert "said by the child" in capsys.readouterr().out
    with pytest.raises(NotPossible, match="no flour"):
        in_child(failing)


def greatest() -> float:
    return harness.greatest_mib()


def test_the_greatest_memory_of_a_child_is_its_own() -> None:
    block = bytearray(400 * harness.MIB)
    assert harness.greatest_mib() > 400
    del block
    assert in_child(greatest) < 400
