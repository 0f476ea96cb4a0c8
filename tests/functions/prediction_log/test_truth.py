"""Labels that are lists or texts, from the record to the loss."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pytest

from toque.functions.evaluation.realised_loss import score
from toque.functions.prediction_log import (
    LABELS_TABLE,
    Label,
    encode_labels,
    outcomes,
    predictions_table,
)
from toque.functions.prediction_log.records import (
    CONTENT_LABELS,
    LABELS,
    LARGE_BYTES,
    PREDICTIONS,
    TRUTH,
    label_rows,
    large_values_table,
)
from toque.functions.prediction_log.writing.columns import label_columns, large_columns, prediction_columns
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.registry import Registry, Table, open_store
from toque.registry.models import Signature, TensorSpec

AT = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2024, 1, 2, tzinfo=UTC)


@pytest.fixture
def store(tmp_path):
    return open_store(f"file://{tmp_path}/store")


def signed(store, classes) -> int:
    registry = Registry(store, actor="ada")
    registry.create_model("m", exist_ok=True)
    spec = TensorSpec(name="label_probability", datatype="FP32", shape=[-1, len(classes)], columns=classes)
    given = TensorSpec(name="numeric", datatype="FP32", shape=[-1, 1], columns=["a"])
    (folder := store.root.parent / "files").mkdir(exist_ok=True)
    (folder / "model.txt").write_text(" ".join(classes))
    return registry.create_version("m", folder, signature=Signature(inputs=[given], outputs=[spec])).version


def answered(store, version, outputs, name) -> None:
    row = dict.fromkeys(PREDICTIONS.names) | {
        "prediction_id": name, "model": "m", "version": version, "arm": "champion", "shadow": False,
        "predicted_at": AT, "outputs": outputs, "day": "2024-01-01",
    }  # fmt: skip
    Table(store, predictions_table("m")).append(
        pa.Table.from_pylist([row], PREDICTIONS), partition_by=["day"]
    )


def labelled(store, at=AT, **labels: Any) -> None:
    record = encode_labels([Label(name, label, at, at) for name, label in labels.items()])
    Table(store, LABELS_TABLE).append(label_columns([record]), partition_by=["day"], merge_schema=True)


def read(store) -> pa.Table:
    return outcomes(store, "m", AT, END, labelled_only=False)


def test_a_number_is_written_as_releases_without_lists_write_it() -> None:
    record = encode_labels([Label("a", 1.0, AT, AT)])
    assert len(msgpack.unpackb(record)[0]) == 4
    assert label_columns([record]).schema == LABELS
    assert label_columns([encode_labels([Label("a", ["rain"], AT, AT)])]).schema == CONTENT_LABELS
    assert [
        row[-1] for row in label_rows(encode_labels([Label("a", [], AT, AT), Label("b", 2, AT, AT)]))
    ] == ["[]", None]


def test_names_are_read_in_the_order_of_the_version_that_answered(store) -> None:
    first, second = signed(store, ["rain", "wind"]), signed(store, ["fog", "wind", "rain"])
    answered(store, first, [0.8, 0.1], "a")
    answered(store, second, [0.2, 0.5, 0.9], "b")
    answered(store, first, [0.8, 0.1], "c")
    answered(store, first, [0.8, 0.1], "d")
    labelled(store, a=["rain"], b=["rain", "wind"], c=[], d=["fog"])
    rows = read(store)
    assert rows[TRUTH.name].to_pylist() == [[1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0], None]
    found = score(rows)
    # by hand: each label's -log of what was said of its truth, and their mean
    assert found.loss[0] == pytest.approx(-(math.log(0.8) + math.log(0.9)) / 2, rel=1e-6)
    assert found.loss[1] == pytest.approx(-(math.log(0.8) + math.log(0.5) + math.log(0.9)) / 3, rel=1e-6)
    assert found.loss[2] == pytest.approx(-(math.log(0.2) + math.log(0.9)) / 2, rel=1e-6)
    assert np.isnan(found.loss[3])  # the version knows no fog: a label that does not fit
    assert found.bias[0] == pytest.approx(0.45 - 0.5)


def test_a_table_of_numbers_takes_lists_later_and_a_correction_wins(store) -> None:
    answered(store, signed(store, ["rain", "wind"]), [0.8, 0.1], "a")
    labelled(store, a=1.0)
    assert "content" not in read(store).column_names
    labelled(store, at=AT + timedelta(hours=1), a=["wind"])
    assert read(store)["truth"].to_pylist() == [[0.0, 1.0]]


def test_a_certain_and_wrong_label_costs_no_more_than_the_clip_allows(store) -> None:
    answered(store, signed(store, ["rain", "wind"]), [0.0, 1.0], "a")
    labelled(store, a=["rain"])
    assert score(read(store), clip=0.01).loss == pytest.approx([math.log(100)])


class Kept(list[bytes]):
    """Log that keeps its records."""

    def extend(self, payloads: Any) -> int:
        super().extend(payloads)
        return len(self)

    def append(self, payload: bytes) -> int:
        super().append(payload)
        return len(self)


def said(store, **texts: str) -> None:
    """Log answers that are texts as a replica does, and drain them."""
    kept = Kept()
    for name, text in texts.items():
        answer = np.array([[text.encode()]], dtype=object)
        Recorder("m", kept).record(
            id=name, version=1, arm="champion", shadow=False, unit=None, at_us=int(AT.timestamp() * 1e6),
            latency_ms=1.0, rows=1, inputs={"a": np.ones((1, 1), np.float32)}, outputs={"text": answer},
        )  # fmt: skip
    Table(store, predictions_table("m")).append(
        prediction_columns(kept)["m"], partition_by=["day"], merge_schema=True
    )
    large = large_columns(kept).get("m")
    if large is not None and large.num_rows:
        Table(store, large_values_table("m")).append(large, partition_by=["day"])


def test_a_text_is_read_beside_what_was_answered_and_judged(store) -> None:
    long = "word " * (LARGE_BYTES // 4)
    said(store, a="Main Street 1", b="Main St 1", c="nobody said", d=long, e="Elm Road")
    labelled(store, a="Main Street 1", b="Main Street 1", d=long + "end", e=3.0)
    rows = read(store)
    assert rows["label_text"].to_pylist()[:3] == ["Main Street 1", "Main Street 1", None]
    assert rows["answer_text"].to_pylist()[:2] == ["Main Street 1", "Main St 1"]
    assert "tensors" not in rows.column_names
    found = score(rows, loss="edit_distance")
    # by hand: "reet" is missing, 4 of 13 letters; the first 10,000 letters of the long ones are the same
    assert found.loss.tolist() == pytest.approx([0.0, 4 / 13, math.nan, 0.0, math.nan], nan_ok=True)
    assert found.answered.tolist() == [True] * 5
    assert found.output.tolist() == [13.0, 9.0, 11.0, len(long), 8.0]  # texts stand as their lengths
    assert score(rows, loss="mismatch").loss[[0, 1, 3]].tolist() == [0.0, 1.0, 1.0]
    assert score(rows, loss="token_distance").loss[1] == pytest.approx(
        1 / 3
    )  # main and 1 of three words each


def test_a_text_is_corrected_and_a_model_of_numbers_knows_none(store) -> None:
    said(store, a="yes")
    labelled(store, a="no")
    labelled(store, at=AT + timedelta(hours=1), a="yes")
    assert score(read(store), loss="mismatch").loss.tolist() == [0.0]
    assert np.isnan(score(read(store)).loss).all()  # a log loss of texts has no meaning


def test_a_record_of_a_text_label_is_the_text_as_json() -> None:
    assert label_rows(encode_labels([Label("a", 'the "end"', AT, AT)]))[0][-1] == '"the \\"end\\""'


def of_classes(store, classes, *, name="probability", datatype="FP32") -> int:
    """A version that has a probability for each class, or an answer of another kind."""
    registry = Registry(store, actor="ada")
    registry.create_model("m", exist_ok=True)
    spec = TensorSpec(name=name, datatype=datatype, shape=[-1, len(classes)], columns=classes)
    given = TensorSpec(name="numeric", datatype="FP32", shape=[-1, 1], columns=["a"])
    (folder := store.root.parent / "files").mkdir(exist_ok=True)
    (folder / "model.txt").write_text(f"{name} {datatype} {classes}")
    return registry.create_version("m", folder, signature=Signature(inputs=[given], outputs=[spec])).version


HAPPY = ["happy", "not too happy", "very happy"]  # each a part of another


@pytest.mark.parametrize("columns", [None, ["version"], ["prediction_id"]])
def test_the_name_of_a_class_is_its_number_by_the_version_that_answered(store, columns) -> None:
    one, other = of_classes(store, HAPPY), of_classes(store, [*HAPPY[::-1], "幸せ"])
    for name, version in (("a", one), ("b", other), ("c", one), ("d", other), ("e", one), ("f", one)):
        answered(store, version, [0.1, 0.2, 0.7], name)
    labelled(store, a="very happy", b="very happy", c=1.0, d="幸せ", e="happy")
    rows = outcomes(store, "m", AT, END, labelled_only=False, columns=columns)
    assert dict(zip(rows["prediction_id"].to_pylist(), rows["label"].to_pylist(), strict=True)) == {
        "a": 2.0, "b": 0.0, "c": 1.0, "d": 3.0, "e": 0.0, "f": None,
    }  # fmt: skip
    assert not {"content", "truth", "label_text"} & set(rows.column_names)
    assert columns is None or "version" not in columns or "version" in rows.column_names
    assert columns is None or "version" in columns or "version" not in rows.column_names


@pytest.mark.parametrize(
    "version",
    [
        lambda store: of_classes(store, HAPPY),  # which has no such class
        lambda store: of_classes(store, ["sad", "very"], name="label_probability"),  # several may be true
        lambda store: of_classes(store, ["sad", "very"], name="text", datatype="BYTES"),
        lambda store: of_classes(store, ["sad"]),
    ],
)
def test_a_text_that_names_no_class_of_the_version_stays_a_text(store, version) -> None:
    answered(store, version(store), [0.1, 0.9], "a")
    labelled(store, a="sad")
    (label,) = read(store)["label"].to_pylist()
    assert math.isnan(label)  # it does not fit


def test_a_class_beside_a_text_keeps_its_number(store) -> None:
    version = of_classes(store, HAPPY)
    for name in "ab":
        answered(store, version, [0.1, 0.2, 0.7], name)
    labelled(store, a="very happy", b="merry")
    rows = read(store)
    assert rows["label"].to_pylist()[0] == 2.0
    assert rows["label_text"].to_pylist() == [None, "merry"]
