"""A function's version is of its code: not of comments, docstrings and layout, and of everything else."""

import gc
import importlib
import linecache
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from toque.registry import code_digest as late_imports
from toque.registry.code_digest import code_text, digest_of

SOURCE = '''
"""Module of rates."""
import rates_of_others

RATE = 2


class Rate:
    """A rate."""

    def of(self, x: int) -> str:
        """Compute it."""
        return f"{x * RATE}" + "# no comment"


def body(x: int) -> str:
    """Compute the rate of x."""
    def inner() -> str:
        "Inner."
        return Rate().of(x)
    from rates_read_late import late
    return inner() + rates_of_others.other(x) + late(x)
'''
OTHER = '"""Others."""\n\ndef other(x: int) -> str:\n    """Other."""\n    return str(x)\n'
LATE = '"""Late."""\n\ndef late(x: int) -> str:\n    """Late."""\n    return str(x)\n'


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Digest of a function in a process that began with these modules."""
    numbers = iter(range(1000))

    def compute(source: str = SOURCE, other: str = OTHER, late: str = LATE) -> str:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        modules = {"rates_here": source, "rates_of_others": other, "rates_read_late": late}
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        linecache.clearcache()
        importlib.invalidate_caches()
        late_imports.late_modules.cache_clear()
        late_imports._file_of.cache_clear()
        return digest_of(importlib.import_module("rates_here").body)

    yield compute
    for name in ("rates_here", "rates_of_others", "rates_read_late"):
        sys.modules.pop(name, None)


def test_comments_docstrings_and_layout_make_no_other_version(digest) -> None:
    first = digest()
    assert digest(SOURCE.replace("Compute", "Work out")) == first
    assert digest(SOURCE.replace('        """Compute it."""\n', "")) == first
    assert (
        digest(
            SOURCE.replace("return inner()", "# why\n    return (\n        inner()").replace(
                "late(x)\n", "late(x)\n    )\n"
            )
        )
        == first
    )
    assert digest(SOURCE.replace("\n\n\n", "\n\n\n\n# between\n\n")) == first
    assert digest(other=OTHER.replace("Other", "The other")) == first
    assert digest(late="# a licence\n" + LATE) == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RATE = 2", "RATE = 3"),
        ("# no comment", "# no  comment"),  # within a string
        ('x: int) -> str:\n    """Compute the', 'x: int = 1) -> str:\n    """Compute the'),
        ("inner() + rates", "inner() * 2 + rates"),
        ("return Rate().of(x)", "return Rate().of(x).__doc__"),
    ],
)
def test_a_change_of_code_makes_another_version(digest, old: str, new: str) -> None:
    assert old in SOURCE
    assert digest(SOURCE.replace(old, new)) != digest()


def test_a_change_of_code_behind_an_import_makes_another_version(digest) -> None:
    changed = "return str(x + 1)"
    assert (
        len(
            {
                digest(),
                digest(other=OTHER.replace("return str(x)", changed)),
                digest(late=LATE.replace("return str(x)", changed)),
            }
        )
        == 3
    )


def test_a_docstring_that_the_code_reads_is_code() -> None:
    source = 'def prompt():\n    """Say {}."""\n    return prompt.__doc__\n'
    assert code_text(source) != code_text(source.replace("Say", "Sing"))
    assert code_text('def f():\n    """A."""\n') == code_text('def f():\n    """B."""\n')


def test_what_is_shown_of_a_field_is_no_code_and_its_bounds_are() -> None:
    source = 'class Rate(BaseModel):\n    of: int = pydantic.Field(default=1, ge=0, description="Rate.", examples=[2])\n'
    assert code_text(source) == code_text(source.replace('"Rate."', '"Its rate."').replace("[2]", "[2, 3]"))
    assert code_text(source) != code_text(source.replace("ge=0", "ge=1"))
    assert code_text('note(description="a")\n') != code_text('note(description="b")\n')


def test_code_that_is_no_whole_statement_stays_as_it_is() -> None:
    lines = "    .map(lambda x: x)  # by itself\n"
    assert code_text(lines) == lines
    indented = '    def f(self):\n        """A."""\n        return """\nx"""\n'
    assert code_text(indented) == code_text(indented.replace("A.", "B."))
    assert "\\nx" in code_text(indented) or "\nx" in code_text(indented)


class Finalised:
    """An object of a cycle whose end runs Python, at which threads switch."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        for _ in range(300):
            pass


def test_threads_may_digest_at_once() -> None:
    """Python before 3.11.8 counts the depth of all threads' trees in one place, and fails if it switches within one."""
    source = Path(late_imports.__file__).read_text()
    switch, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(50)

    def digest(_: int) -> str:
        Finalised()
        return code_text(source)

    try:
        with ThreadPoolExecutor(6) as threads:
            texts = set(threads.map(digest, range(60)))
    finally:
        sys.setswitchinterval(switch)
        gc.set_threshold(*threshold)
    assert len(texts) == 1
