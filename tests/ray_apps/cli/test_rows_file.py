"""Rows of a file as a model is asked about them: values as they were trained on, in parts, and the answers by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from toque.functions.prediction_log.writing.columns import _row_ids
from toque.ray_apps.cli.arguments import Given
from toque.ray_apps.cli.commands import predict
from toque.ray_apps.cli.commands.predict import ROWS_A_REQUEST, label_of, read_rows
from toque.ray_apps.cli.errors import UsageError

FRAME = pl.DataFrame(
    {
        "教育 年数": [12, None, 8],
        "Income (US $)": [1.5, 2.0, None],
        "zip": ["00501", "10115", None],
        "région": ["Île-de-France", None, "北京"],
        "note": ["7", "seven", "8"],
    }
)
ROWS = [
    {"教育 年数": 12, "Income (US $)": 1.5, "zip": "00501", "région": "Île-de-France", "note": "7"},
    {"教育 年数": None, "Income (US $)": 2.0, "zip": "10115", "région": None, "note": "seven"},
    {"教育 年数": 8, "Income (US $)": None, "zip": None, "région": "北京", "note": "8"},
]

WRITERS: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    "rows.csv": lambda frame, path: frame.write_csv(path),
    "rows.CSV": lambda frame, path: frame.write_csv(path, null_value="NA"),
    "rows.tsv": lambda frame, path: frame.write_csv(path, separator="\t"),
    "rows.parquet": lambda frame, path: frame.write_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_value_is_sent_as_the_file_means_it(tmp_path: Path, name: str) -> None:
    WRITERS[name](FRAME, tmp_path / name)
    assert read_rows(tmp_path / name, leave_out=[]) == ROWS
    assert read_rows(tmp_path / name, leave_out=["note", "zip"])[0].keys() == {
        "教育 年数", "Income (US $)", "région",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.csv", b"", "cannot be read"),
        ("rows.csv", b"a,b\n", "has no rows"),
        ("rows.csv", b"a,b\n1,2\n", "has no column 'c'; it has a, b"),
        ("rows.parquet", b"PAR1", "cannot be read"),
        ("rows.xlsx", b"", "give a .csv, .tsv or .parquet file"),
    ],
)
def test_a_file_that_cannot_be_asked_about_is_refused(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_rows(tmp_path / name, leave_out=["c"] if "no column" in words else [])


class Served:
    """A platform that answers each row by its number."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def model_path(self, model: str) -> str:
        return f"/v2/models/{model}"

    def send(self, *_: str, body: dict[str, Any]) -> Any:
        self.bodies.append(body)
        values = [row["x"] for row in body["parameters"]["request"]]
        outputs = [{"name": "probability", "data": [each for x in values for each in (x, 1.0 - x)]}]
        names = ["very happy" if x > 0.4 else None for x in values]
        answer = {"id": body["id"], "outputs": outputs, "parameters": {"arm": "champion", "class": names}}
        return SimpleNamespace(json=lambda: answer)


def given(path: Path, **changes: Any) -> Given:
    made = {
        "model": "happy", "version": None, "json": None, "entities": None, "request": None, "example": False,
        "attribute": [], "explain": False, "id": "ask", "unit": None, "output": "json", "file": str(path),
        "key": [], "drop": [],
    }  # fmt: skip
    return Given(**(made | changes))


@pytest.mark.parametrize("count", [1, 2, ROWS_A_REQUEST, 2 * ROWS_A_REQUEST + 1])
def test_every_row_is_answered_once_by_an_id_that_the_log_has(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    pl.select(x=pl.int_range(count) / 4096, who=pl.int_range(count)).write_parquet(tmp_path / "r.parquet")
    served, shown, asked = Served(), list[Any](), given(tmp_path / "r.parquet", key=["who"])
    asked.client = served
    monkeypatch.setattr(predict, "table", lambda *given: shown.extend(given[-1]))
    predict._predict(asked)
    assert [row["probability"] for row in shown] == [[n / 4096, 1.0 - n / 4096] for n in range(count)]
    assert [row["class"] for row in shown] == ["very happy" if n / 4096 > 0.4 else None for n in range(count)]
    sent = [key["who"] for body in served.bodies for key in body["parameters"]["entities"]]
    assert sent == list(range(count))
    assert all(len(body["parameters"]["request"]) <= ROWS_A_REQUEST for body in served.bodies)
    logged = [
        name for body in served.bodies for name in _row_ids(body["id"], len(body["parameters"]["request"]))
    ]
    assert [row["prediction"] for row in shown] == logged
    assert len({*logged}) == count


@pytest.mark.parametrize("other", [{"json": "{}"}, {"entities": "[]"}, {"example": True}, {"request": "[]"}])
def test_a_file_is_the_whole_request(tmp_path: Path, other: dict[str, Any]) -> None:
    asked = given(tmp_path / "none.csv", **other)
    asked.client = Served()
    with pytest.raises(UsageError, match="--file has the rows"):
        predict._predict(asked)


@pytest.mark.parametrize(
    ("typed", "label"),
    [
        ("1", 1.0),
        ("-3.5", -3.5),
        ("very happy", {"text": "very happy"}),
        ("très heureux", {"text": "très heureux"}),
        ('"7"', {"text": "7"}),
        ('["rain", "wind"]', ["rain", "wind"]),
    ],
)
def test_a_label_is_typed_as_one_says_it(typed: str, label: Any) -> None:
    assert label_of(typed) == label
