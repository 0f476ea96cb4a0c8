"""The digest of a formula: what it reads changes it, in whatever way it is reached, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from toque.featurestore import InvalidDefinition
from toque.featurestore.definitions.code import code_digest, same_code

FILES = {
    "formula.py": '''
import functools
import numpy as np
from parts import helpers
from parts.helpers import scaled as by_factor, Shape
import rates

def traced(function):
    @functools.wraps(function)
    def inner(columns):
        return LEVEL * function(columns)
    return inner

def formula(columns, extra=rates.EXTRA, *, bonus=0.5):
    """Words."""
    from late import unit  # a comment
    inner = lambda x: x * (TABLE["a"] + LATER)
    return [inner(unit(x)) * helpers.VAT * by_factor(x) * Shape().area(x) * extra * bonus for x in columns]

def maker(k):
    def closed(columns):
        return k * columns
    return closed

closed = maker(rates.CLOSED)

@traced
def wrapped(columns):
    return columns

TABLE = {"a": 1}
TABLE["b"] = 2
TABLE.update(c=3)
try:
    LEVEL = 1
except ImportError:
    LEVEL = 2
LATER = 7
UNUSED = 1

def unused():
    return UNUSED
''',
    "parts/__init__.py": "",
    "parts/helpers.py": '''
from .deep import FACTOR, STEPS as LEVELS
VAT = 1.2
NOT_VAT = 1.2

def scaled(x):
    """Words."""
    return recursive(x, 2) * FACTOR + LEVELS[0]

def recursive(x, n):
    return x if n == 0 else recursive(x, n - 1)

class Shape:
    SIDE = 3

    def area(self, x):
        return self.SIDE * x * corner()

def corner():
    return 4
''',
    "parts/deep.py": "FACTOR = 10\nIDLE = 1\nSTEPS = [5]\n",
    "rates.py": "EXTRA = 1\nCLOSED = 3\nUNREAD = 1\n",
    "late.py": "from later import CENTS\ndef unit(x):\n    return x / CENTS\n",
    "later.py": "CENTS = 100\n",
}
READ: dict[str, tuple[str, str, str]] = {
    "its own text": ("formula.py", "* bonus for", "+ bonus for"),
    "a constant of its lambda, bound below it": ("formula.py", "LATER = 7", "LATER = 8"),
    "an item of a table": ("formula.py", '"a": 1', '"a": 9'),
    "an item that is set later": ("formula.py", 'TABLE["b"] = 2', 'TABLE["b"] = 3'),
    "an update of a table": ("formula.py", "update(c=3)", "update(c=4)"),
    "a default that stands elsewhere": ("rates.py", "EXTRA = 1", "EXTRA = 2"),
    "an attribute of a module": ("parts/helpers.py", "\nVAT = 1.2", "\nVAT = 1.3"),
    "a helper under another name": ("parts/helpers.py", "recursive(x, 2)", "recursive(x, 3)"),
    "a helper's helper": ("parts/helpers.py", "x if n == 0", "-x if n == 0"),
    "a helper's import": ("parts/deep.py", "FACTOR = 10", "FACTOR = 11"),
    "a class's constant": ("parts/helpers.py", "SIDE = 3", "SIDE = 4"),
    "what a method calls": ("parts/helpers.py", "return 4", "return 5"),
    "a table of another module": ("parts/deep.py", "[5]", "[6]"),
    "a late import": ("late.py", "x / CENTS", "x * CENTS"),
    "what a late import imports": ("later.py", "CENTS = 100", "CENTS = 1000"),
}
CLOSED: dict[str, tuple[str, str, str]] = {
    "what is closed over": ("rates.py", "CLOSED = 3", "CLOSED = 4"),
}
WRAPPED: dict[str, tuple[str, str, str]] = {
    "what a decorator reads": ("formula.py", "    LEVEL = 1", "    LEVEL = 3"),
    "what a decorator does": ("formula.py", "LEVEL * function", "LEVEL + function"),
    "the function within": ("formula.py", "    return columns\n\nTABLE", "    return -columns\n\nTABLE"),
}
UNREAD: dict[str, tuple[str, str, str]] = {
    "another constant": ("formula.py", "UNUSED = 1", "UNUSED = 2"),
    "another function": ("formula.py", "return UNUSED", "return -UNUSED"),
    "another name of a module": ("parts/helpers.py", "NOT_VAT = 1.2", "NOT_VAT = 1.3"),
    "another name of an import's module": ("parts/deep.py", "IDLE = 1", "IDLE = 2"),
    "a helper's words": ("parts/helpers.py", '"""Words."""', '"""Other words."""'),
    "a helper's layout": ("parts/helpers.py", "return recursive(x, 2) * FACTOR + LEVELS[0]", "return (\n        recursive(x, 2) * FACTOR + LEVELS[0]\n    )"),
    "another name of the same import": ("formula.py", "scaled as by_factor, Shape", "scaled as by_factor, Shape, corner"),
    "another default's module": ("rates.py", "UNREAD = 1", "UNREAD = 2"),
    "what stands beside a module's attribute": ("parts/helpers.py", "NOT_VAT = 1.2", "NOT_VAT = [1.2]"),
}  # fmt: skip
SCRIPT = """
import os, sys
from toque.featurestore.definitions.code import code_digest
for folder in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    sys.path.insert(0, folder)
    import formula
    print(*(code_digest(getattr(formula, name)) for name in ("formula", "closed", "wrapped")), flush=True)
    os._exit(0)
"""
CHANGES = [*READ.values(), *CLOSED.values(), *WRAPPED.values(), *UNREAD.values()]
Digests = dict[tuple[str, str, str] | None, list[str]]


def write(folder: Path, change: tuple[str, str, str] | None) -> Path:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if change is not None and change[0] == name:
            assert text.count(change[1]) == 1, change
        path.write_text(text.replace(*change[1:]) if change is not None and change[0] == name else text)
    return folder


def digests_in(folders: list[Path], *, seed: int) -> list[list[str]]:
    """Digests of the three formulas in each folder, by a process that knows none of them."""
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, folders)],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    return [line.split() for line in made.stdout.splitlines()]


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> Digests:
    changes = [None, *CHANGES]
    folders = [write(tmp_path_factory.mktemp("project"), each) for each in changes]
    return dict(zip(changes, digests_in(folders, seed=0), strict=True))


@pytest.mark.parametrize("change", READ.values(), ids=READ.keys())
def test_what_a_formula_reads_is_in_its_digest(digests: Digests, change: tuple[str, str, str]) -> None:
    assert digests[change][0] != digests[None][0]


@pytest.mark.parametrize("change", CLOSED.values(), ids=CLOSED.keys())
def test_what_a_formula_closes_over_is_in_its_digest(digests: Digests, change: tuple[str, str, str]) -> None:
    now, before = digests[change], digests[None]
    assert (now[0] == before[0], now[1] == before[1]) == (True, False)


@pytest.mark.parametrize("change", WRAPPED.values(), ids=WRAPPED.keys())
def test_what_a_decorator_makes_of_a_formula_is_in_its_digest(
    digests: Digests, change: tuple[str, str, str]
) -> None:
    assert digests[change][2] != digests[None][2]


@pytest.mark.parametrize("change", UNREAD.values(), ids=UNREAD.keys())
def test_what_a_formula_does_not_read_is_not_in_its_digest(
    digests: Digests, change: tuple[str, str, str]
) -> None:
    assert digests[change] == digests[None]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_digest_is_the_same_in_another_process_and_folder(
    tmp_path: Path, digests: Digests, seed: int
) -> None:
    assert digests_in([write(tmp_path, None)], seed=seed) == [digests[None]]


def closing_over(value: Any) -> Callable[[Any], Any]:
    def formula(columns: Any) -> Any:
        return value, columns

    return formula


class Rate:
    """A value without a text."""


VALUES: dict[str, tuple[Any, Any]] = {
    "numbers": (1, 2),
    "a truth and a number": (1, True),
    "zeros": (0.0, -0.0),
    "lists": ([1, [2]], [1, [3]]),
    "maps": ({"a": {"b": 1}}, {"a": {"b": 2}}),
    "sets": ({"a", "b"}, {"a", "c"}),
    "functions": (closing_over(1), closing_over(2)),
    "bound arguments": (partial(max, 1), partial(max, 2)),
    "methods": ("a".upper, "a".lower),
}


@pytest.mark.parametrize("pair", VALUES.values(), ids=VALUES.keys())
def test_values_that_differ_give_digests_that_differ(pair: tuple[Any, Any]) -> None:
    first, second = (code_digest(closing_over(value)) for value in pair)
    assert first != second
    assert code_digest(closing_over(pair[0])) == first


def test_arrays_count_by_their_bytes() -> None:
    numpy, polars = pytest.importorskip("numpy"), pytest.importorskip("polars")
    for make in (numpy.array, polars.Series):
        one, same, other = (code_digest(closing_over(make(each))) for each in ([1, 2], [1, 2], [1, 3]))
        assert (one == same, one == other) == (True, False)


def test_a_value_that_cannot_be_digested_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert code_digest(closing_over(Rate())) == code_digest(closing_over(Rate()))
    assert (
        "reads value, a tests.featurestore.definitions.test_code.Rate, which cannot be digested"
        in caplog.text
    )


def test_code_without_a_text_is_refused() -> None:
    space: dict[str, Any] = {}
    exec("def formula(columns): return columns", space)  # noqa: S102  # as at a prompt
    with pytest.raises(InvalidDefinition, match="cannot be read; define it in a module"):
        code_digest(space["formula"])


@pytest.mark.parametrize("form", ["{text}", "{text}+0123456789abcdef0123456789abcdef"], ids=["0.1", "before"])
def test_a_digest_in_a_form_of_before_is_of_the_same_code_if_the_text_is(form: str) -> None:
    now = code_digest(closing_over(1))
    text = now.partition("+")[0]
    assert (same_code(form.format(text=text), now), same_code(now, now)) == (True, True)
    assert not same_code(now, code_digest(closing_over(2)))
    assert not same_code(form.format(text=text[:-1] + "_"), now)
