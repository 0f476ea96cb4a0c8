import pytest

from tests.project.docstrings import fault, faults


@pytest.mark.parametrize(
    ("docstring", "says"),
    [
        ("It is one experiment.", "opens with 'It is'"),
        ("Those of a step to come, whatever they are.", "opens with 'Those'"),
        ("A row is a row.", None),
        ("The target's.", "under 5 words"),
        ("Labels. Sent later by id, in any order.", "under 5 words"),
        ("Whether the stream accepts writes; always true.", None),
        ("Whose token the request carries.", None),
    ],
)
def test_a_first_sentence_stands_alone_or_is_named(docstring, says):
    found = fault(docstring)
    assert found is None if says is None else says in str(found)


def test_a_fault_is_told_with_its_place():
    source = '"""A module that holds one function."""\n\n\ndef f():\n    """Who leaves alone."""\n'
    assert [line.partition(": ")[0] for line in faults(source, "a/b.py")] == ["a/b.py:4"]
