"""Rows of the log hold what the model saw and gave: type, shape and bits, through records, tables and compaction."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.functions.prediction_log.logbook import T0, record
from toque.functions.prediction_log import PredictionLogError, predictions, predictions_table
from toque.functions.prediction_log.frames import Frame
from toque.functions.prediction_log.reading.exact import ExactRow, exact_rows, newest_rows, typed_predictions
from toque.functions.prediction_log.records import (
    LARGE_BYTES,
    BatchPlace,
    LoggedTensor,
    large_values_table,
    read_value,
)
from toque.functions.prediction_log.writing.drain import add_records
from toque.registry import Signature, Table, TensorSpec, open_store
from toque.registry.store import ObjectStore
from toque.registry.store.tables.upkeep import compact_table

NANS = np.array([0x7FF8000000000123, 0xFFF4000000000001, 0x8000000000000000], np.uint64).view(np.float64)
BARE: dict[str, Any] = {
    "numeric": None,
    "categorical": None,
    "outputs": None,
    "missing": None,
    "entities": None,
}
NANS32 = np.array([0x7FC00123, 0xFFA00001, 0x80000000], np.uint32).view(np.float32)


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    return open_store(tmp_path_factory.mktemp("store").as_uri())


def put(store: ObjectStore, *payloads: bytes, writer: str = "w", first: int = 1) -> None:
    add_records(
        store,
        "predictions",
        {writer: [Frame(first + i, payload, 0) for i, payload in enumerate(payloads)]},
    )


def kept(rows: int = 1, *, outputs: bool = True, **tensors: np.ndarray) -> list[LoggedTensor]:
    found = [LoggedTensor.of(name, array, rows=rows, output=False) for name, array in tensors.items()]
    if outputs:
        found.append(LoggedTensor.of("y", np.zeros((rows, 2), np.float64), rows=rows, output=True))
    assert None not in found
    return [each for each in found if each]


def read(store: ObjectStore, signature: Signature, *, version: int = 3, limit: int = 100) -> list[ExactRow]:
    rows = newest_rows(
        store, "late", T0 - timedelta(days=1), T0 + timedelta(days=9), version=version, limit=limit
    )
    return list(exact_rows(store, "late", signature, rows))


def signed(*inputs: tuple[str, str, list[int]]) -> Signature:
    specs = [TensorSpec.model_validate({"name": n, "datatype": d, "shape": s}) for n, d, s in inputs]
    return Signature(inputs=specs, outputs=[TensorSpec(name="y", datatype="FP64", shape=[-1, 2])])


def bits(array: np.ndarray) -> Any:
    return (
        array.dtype,
        array.shape,
        array.tolist() if array.dtype.kind == "O" else np.ascontiguousarray(array).tobytes(),
    )


@pytest.mark.parametrize(
    "array",
    [
        NANS,
        NANS32,
        np.array([0x7E01, 0x8000, 0x3C00], np.uint16).view(np.float16),
        np.array([2**53 + 1, -(2**63), 2**63 - 1], np.int64),
        np.array([2**64 - 1, 0, 16_777_217], np.uint64),
        np.array([True, False, True]),
        np.array([-128, 127, 0], np.int8),
        np.array([b"\xff\x00", None, b""], dtype=object),
        np.array(["Zürich", None, "x" * 100], dtype=object),
    ],
    ids=lambda array: array.dtype.name,
)
@pytest.mark.parametrize("shape", [(1, 3), (3,), (3, 1), (1, 3, 1)])
def test_each_type_comes_back_with_its_bits(store: ObjectStore, array: np.ndarray, shape: tuple[int, ...]):
    given = array.reshape(shape)
    rows = shape[0]
    put(store, record("a", rows=rows, **BARE, tensors=kept(rows, x=given)))
    put(store, record("b", tensors=kept(1, x=array.reshape(1, 3))), first=2)
    compact_table(Table(store, predictions_table("late")))
    found = [row for row in read(store, signed(("x", "FP64", [-1]))) if row.prediction_id.startswith("a")]
    wanted = given if array.dtype.kind != "O" else np.vectorize(_encoded, otypes=[object])(given)
    assert [bits(row.inputs["x"]) for row in found if row.inputs] == [
        bits(wanted[i, ...]) for i in range(rows)
    ]
    assert [(row.at, row.rows) for row in found] == [(i, rows) for i in range(rows)]


def _encoded(item: object) -> object:
    return item.encode() if isinstance(item, str) else item


def test_float32_and_texts_need_no_second_copy_and_keep_their_nans(store: ObjectStore):
    put(
        store,
        record(
            "a", numeric=NANS32.reshape(1, 3), categorical=[["UA", None]], outputs=NANS32[:2].reshape(1, 2)
        ),
    )
    signature = Signature(
        inputs=[
            TensorSpec(name="n", datatype="FP32", shape=[-1, 2]),
            TensorSpec(name="c", datatype="BYTES", shape=[-1, 2]),
            TensorSpec(name="m", datatype="FP32", shape=[-1]),
        ],
        outputs=[TensorSpec(name="p", datatype="FP32", shape=[-1, 2])],
    )
    (row,) = read(store, signature)
    assert row.inputs is not None
    assert row.outputs is not None
    assert [bits(row.inputs[name]) for name in "nm"] == [bits(NANS32[:2]), bits(NANS32[2].reshape(()))]
    assert row.inputs["c"].tolist() == [b"UA", None]
    assert bits(row.outputs["p"]) == bits(NANS32[:2])
    assert "tensors" not in Table(store, predictions_table("late")).schema().names


def test_rows_of_a_signature_that_the_columns_cannot_hold_are_said_to_be_lost(store: ObjectStore):
    put(store, record("a"))  # as releases before this one logged a float64
    (row,) = read(store, signed(("x", "FP64", [-1, 2])))
    assert (row.inputs, row.outputs, row.answered) == (None, None, True)


def test_versions_with_other_inputs_stand_in_one_table(store: ObjectStore):
    put(store, record("old", outputs=np.zeros((1, 2), np.float32)))
    put(
        store,
        record("new", version=4, tensors=kept(1, age=np.array([[7]], np.int64), word=_texts(b"hi"))),
        first=2,
    )
    put(store, record("last", version=5, tensors=kept(1, img=np.ones((1, 2, 2), np.uint8))), first=3)
    (four,) = read(store, signed(("age", "INT64", [-1, 1]), ("word", "BYTES", [-1])), version=4)
    (five,) = read(store, signed(("img", "UINT8", [-1, 2, 2])), version=5)
    assert four.inputs is not None
    assert five.inputs is not None
    assert (four.inputs["age"].tolist(), four.inputs["word"].tolist()) == ([7], b"hi")
    assert five.inputs["img"].tolist() == [[1, 1], [1, 1]]
    assert predictions(store, "late", T0 - timedelta(days=1), T0 + timedelta(days=1)).num_rows == 3


def _texts(*items: bytes) -> np.ndarray:
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out


def test_a_large_value_stands_once_beside_the_rows_that_name_it(store: ObjectStore):
    image = np.random.default_rng(0).integers(0, 256, (1, LARGE_BYTES + 1), np.uint8)
    served, shadow = (record("a", shadow=each, tensors=kept(1, x=image)) for each in (False, True))
    put(store, served, shadow)
    put(store, served, shadow)  # the same frames again: each is in both tables once
    assert Table(store, large_values_table("late")).read().num_rows == 1
    assert predictions(store, "late", T0, T0 + timedelta(days=1)).num_rows == 2
    rows = read(store, signed(("x", "UINT8", [-1, LARGE_BYTES + 1])))
    assert [bits(row.inputs["x"]) for row in rows if row.inputs] == [bits(image[0])] * 2


def test_a_large_value_that_is_gone_or_changed_is_an_error(store: ObjectStore):
    put(store, record("a", tensors=kept(1, x=np.ones((1, LARGE_BYTES + 1), np.uint8))))
    table = Table(store, large_values_table("late"))
    changed = table.read()
    table.overwrite(changed.set_column(2, "data", pa.array([b"other"], pa.binary())), partition_by=["day"])
    with pytest.raises(PredictionLogError, match="other bytes"):
        read(store, signed(("x", "UINT8", [-1, LARGE_BYTES + 1])))
    table.overwrite(changed.slice(0, 0), partition_by=["day"])
    with pytest.raises(PredictionLogError, match="is gone"):
        read(store, signed(("x", "UINT8", [-1, LARGE_BYTES + 1])))


def test_a_tensor_of_the_whole_request_is_each_rows(store: ObjectStore):
    whole, by_row = np.array([5, 6, 7], np.int32), np.array([[1], [2]], np.int64)
    put(store, record("a", rows=2, **BARE, tensors=kept(2, whole=whole, x=by_row)))
    found = read(store, signed(("whole", "INT32", [3]), ("x", "INT64", [-1, 1])))
    assert [(r.inputs["whole"].tolist(), r.inputs["x"].tolist()) for r in found if r.inputs] == [
        ([5, 6, 7], [1]),
        ([5, 6, 7], [2]),
    ]


def test_rows_of_one_batch_come_together_in_its_order(store: ObjectStore):
    x = np.array([[1.0]])
    put(
        store,
        record("c", place=BatchPlace("b-1", 2, 3), tensors=kept(1, x=x)),
        record("alone", tensors=kept(1, x=x)),
        record(
            "a",
            rows=2,
            **BARE,
            place=BatchPlace("b-1", 0, 3),
            tensors=kept(2, x=np.ones((2, 1))),
        ),
    )
    found = read(store, signed(("x", "FP64", [-1, 1])))
    batched = [row for row in found if row.batch == "b-1"]
    assert [(row.prediction_id, row.at, row.rows) for row in batched] == [
        ("a:0", 0, 3),
        ("a:1", 1, 3),
        ("c", 2, 3),
    ]
    assert [(row.at, row.rows) for row in found if row.prediction_id == "alone"] == [(0, 1)]


def test_the_newest_rows_are_read_where_there_are_more(store: ObjectStore):
    put(store, *(record(str(i), at=T0 + timedelta(seconds=i), propensity=0.25) for i in range(5)))
    rows = newest_rows(store, "late", T0, T0 + timedelta(days=1), version=3, limit=2)
    assert sorted(rows["prediction_id"].to_pylist()) == ["3", "4"]
    assert predictions(store, "late", T0, T0 + timedelta(days=1))["propensity"].to_pylist() == [0.25] * 5


def test_typed_columns_have_arrow_types(store: ObjectStore):
    put(
        store,
        record(
            "a", rows=2, **BARE,
            tensors=kept(2, h=np.ones((2,), np.float16), v=np.arange(4, dtype=np.uint64).reshape(2, 2),
                         i=np.ones((2, 2, 3), np.uint8), t=_texts(b"x", b"y")),
        ),
    )  # fmt: skip
    signature = signed(
        ("h", "FP16", [-1]), ("v", "UINT64", [-1, 2]), ("i", "UINT8", [-1, 2, 3]), ("t", "BYTES", [-1])
    )
    rows = newest_rows(store, "late", T0, T0 + timedelta(days=1), version=3, limit=9)
    table = typed_predictions(store, "late", signature, rows)
    kinds = {name: table.schema.field(name).type for name in table.column_names}
    assert kinds["inputs.h"] == pa.float16()
    assert kinds["inputs.v"] == pa.list_(pa.uint64())
    assert kinds["inputs.i"] == pa.fixed_shape_tensor(pa.uint8(), (2, 3))
    assert kinds["inputs.t"] == pa.binary()
    assert kinds["outputs.y"] == pa.list_(pa.float64())
    assert table["inputs.v"].to_pylist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [("FP64", [2], b"\0" * 9), ("BYTES", [1], b"\x09\0\0\0ab"), ("BF16", [1], b"\0\0"), ("INT8", [3], b"\0")],
)
def test_bytes_that_do_not_fit_their_type_are_refused(datatype: str, shape: list[int], data: bytes):
    with pytest.raises(PredictionLogError, match="logged tensor"):
        read_value(datatype, shape, data)
