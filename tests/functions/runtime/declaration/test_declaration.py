import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pytest
from pydantic import BaseModel, Field

from toque.functions import Cron, OnEvent, Resources, Retries, function
from toque.functions.runtime import catalog
from toque.functions.runtime.errors import DeclarationError, InvalidArguments, UnknownFunction
from toque.registry.code_digest import _follow


class Sum(BaseModel):
    total: int


@function(resources=Resources(num_cpus=2), timeout_s=3)
def total(numbers: list[int], start: int = 0) -> Sum:
    """Add numbers up."""
    return Sum(total=sum(numbers, start))


def test_the_schema_comes_from_the_signature() -> None:
    assert total.input_schema == {
        "type": "object",
        "properties": {
            "numbers": {"type": "array", "items": {"type": "integer"}},
            "start": {"type": "integer", "default": 0},
        },
        "additionalProperties": False,
        "required": ["numbers"],
    }
    assert total.output_schema["properties"]["total"]["type"] == "integer"
    assert (total.name, total.doc, total.resources.num_cpus) == ("total", "Add numbers up.", 2)


def test_call_json_takes_and_gives_plain_values() -> None:
    assert total.call_json({"numbers": [1, 2.0]}) == {"total": 3}  # JSON has one kind of number


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        ({}, "numbers", "required"),
        ({"numbers": [1], "end": 1}, "end", "unknown parameter"),
        ({"numbers": [1, "2"]}, "numbers.1", "valid integer"),
        ({"numbers": [1, False]}, "numbers.1", "valid integer"),
    ],
)
def test_bad_json_arguments_name_the_field(arguments: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidArguments, match=message) as caught:
        total.call_json(arguments)
    assert caught.value.problems[0]["field"] == field


def test_a_naive_time_is_refused() -> None:
    @function
    def at(moment: datetime) -> str:
        return moment.isoformat()

    with pytest.raises(InvalidArguments, match="moment: a naive time"):
        at.call_json({"moment": "2024-01-01T00:00:00"})
    assert at.call_json({"moment": "2024-01-01T00:00:00Z"}) == "2024-01-01T00:00:00+00:00"


def no_types(a) -> int:  # type: ignore[no-untyped-def]
    return int(a)


def no_return(a: int):  # type: ignore[no-untyped-def]
    return a


def many(*a: int) -> int:
    return sum(a)


def keyed(key: str) -> str:
    return key


@pytest.mark.parametrize(
    ("body", "message"),
    [(no_types, "'a' has no type"), (no_return, "return type"), (many, "no name"), (keyed, "rename it")],
)
def test_an_invalid_signature_is_refused_at_import(body: Callable[..., Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        function(body)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0},
        {"timeout_s": "1"},
        {"retries": 3},
        {"resource": 1},
        {"max_concurrency": 0},
        {"on": "alarms"},
        {"in_thread": True},
        {"cache": True, "durable": False},
        {"warm": 1, "durable": False},
    ],
)
def test_wrong_options_are_refused_at_import(options: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=next(iter(options))):

        @function(**options)
        def f(a: int) -> int:
            return a


def test_wrong_values_are_refused() -> None:
    for make in (
        lambda: Resources(num_cpus=-1),
        lambda: Retries(0),
        lambda: Retries(on=(int,)),  # type: ignore[arg-type]
        lambda: OnEvent("/x"),
    ):
        with pytest.raises(DeclarationError):
            make()


def test_backoff_grows_to_its_ceiling() -> None:
    retries = Retries(backoff_s=1, factor=2, max_backoff_s=5)
    assert [retries.backoff(attempt, draw=1.0) for attempt in (1, 2, 3, 4)] == [1, 2, 4, 5]
    assert retries.backoff(1, draw=0.0) == 0.5


def test_types_without_a_json_form_run_from_python() -> None:
    @function
    def rows(table: pa.Table) -> int:
        return int(table.num_rows)

    assert rows(pa.table({"a": [1, 2]})) == 2
    assert rows.remote(pa.table({"a": [1]})).result() == 1
    with pytest.raises(DeclarationError, match="no JSON Schema"):
        _ = rows.input_schema


class Walk(BaseModel):
    kind: Literal["walk"] = "walk"
    steps: int


class Ride(BaseModel):
    kind: Literal["ride"] = "ride"


def test_schema_and_validation_both_require_the_tag_of_a_union() -> None:
    @function
    def travel(by: list[Annotated[Walk | Ride, Field(discriminator="kind")]]) -> int:
        return len(by)

    schema = travel.input_schema["$defs"]
    assert (schema["Walk"]["required"], schema["Ride"]["required"]) == (["kind", "steps"], ["kind"])
    assert travel.signature.load_strictly({"by": [{"kind": "ride"}]}) == {"by": [Ride()]}
    with pytest.raises(InvalidArguments, match="kind"):
        travel.signature.load_strictly({"by": [{"steps": 3}]})


def test_constraints_are_part_of_the_schema_and_checked() -> None:
    @function
    def positive(a: Annotated[int, Field(ge=1)]) -> int:
        return a

    with pytest.raises(InvalidArguments):
        positive(0)
    assert positive.input_schema["properties"]["a"]["minimum"] == 1


def test_the_catalog_finds_by_name_and_by_reference() -> None:
    assert catalog.get("total") is total
    assert catalog.get(total.reference) is total
    assert catalog.find("nothing_of_the_kind") is None
    with pytest.raises(UnknownFunction, match="there is no function"):
        catalog.get("nothing_of_the_kind")


def make(number: int) -> Any:
    @function
    def numbered(a: int) -> int:
        return a + number

    return numbered


def test_the_digest_follows_the_code() -> None:
    @function
    def plain(a: int) -> int:
        return a + 1

    first = plain.digest

    @function
    def plain(a: int) -> int:  # type: ignore[no-redef]
        return a + 2

    assert plain.digest != first
    assert make(1).digest == make(1).digest
    assert make(1).digest != make(2).digest


class _Meta(type):
    """Classes that are equal to each other."""

    def __eq__(cls, other: object) -> bool:
        return isinstance(other, _Meta)

    def __hash__(cls) -> int:
        return 0


class _First(metaclass=_Meta):
    answer = 1


class _Second(metaclass=_Meta):
    answer = 2


def test_classes_that_are_equal_count_by_their_code() -> None:
    @function
    def first() -> int:
        return _First.answer

    @function
    def second() -> int:
        return _Second.answer

    parts: dict[str, str] = {}
    for each in (first, second):
        _follow(each.body, parts)
    assert [name for name, texts in parts.items() if "answer = 2" in texts[0]] == [f"{__name__}:_Second"]


CONSTANTS = """
from toque.functions import function

class Thing: ...

def one() -> int: return 1

WORDS = frozenset({"red", "green", "blue", "white"})
MIXED = (one, Thing(), ConnectionError, frozenset({"a", "b", "c"}))

@function
def season(word: str) -> bool:
    return word in WORDS and bool(MIXED)
"""


def test_the_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "spices.py").write_text(CONSTANTS)
    ask = [sys.executable, "-c", "import spices; print(spices.season.digest)"]
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[4])))
    asked = [
        subprocess.Popen(
            ask, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    ]
    told = [each.communicate()[0] for each in asked]
    assert told[0] == told[1]
    assert len(told[0].strip()) == 64


@pytest.mark.parametrize(
    ("trigger", "text"),
    [
        (Cron("17 3 * * *"), "17 3 * * * UTC"),
        (Cron("0 6 * * 1", timezone="Europe/Rome", jitter_s=600, overlap="queue"), "0 6 * * 1 Europe/Rome"),
        (OnEvent("alarms"), "alarms"),
        (OnEvent("models/late", where={"model": "late", "to": 2}), 'models/late where model="late", to=2'),
    ],
)
def test_a_trigger_says_in_words_when_it_fires(trigger: Cron | OnEvent, text: str) -> None:
    assert trigger.text == text
