"""The share of names that say nothing of what they name does not rise."""

import ast

import pytest

from tests.project import dialect


def test_the_share_of_dialect_names_does_not_rise(capsys: pytest.CaptureFixture[str]) -> None:
    assert dialect.main() == 0, capsys.readouterr().out


def test_a_name_counts_once_for_each_scope_that_binds_it() -> None:
    code = (
        "def given(each, *, to=1):\n"
        "    each.found = [each for each in to]\n"
        "    return lambda kept: kept + each\n"
        "class Asked:\n    at: int\nheld = told\n"
    )
    names = sorted(dialect.bound_names(ast.parse(code)))
    assert names == ["Asked", "at", "each", "found", "given", "held", "kept", "to"]
