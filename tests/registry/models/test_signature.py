import math
from typing import Any

import pytest
from pydantic import ValidationError

from toque.registry import Signature, TensorSpec
from toque.registry.models.versions import jsonable

OUT = [{"name": "probability", "datatype": "FP32", "shape": [-1, 1]}]


def numeric(**changes: Any) -> dict[str, Any]:
    return {"name": "numeric", "datatype": "FP32", "shape": [-1, 2], "columns": ["a", "b"], **changes}


def test_a_signature_survives_json_with_missing_numbers_in_its_example():
    example = {"numeric": [[1.0, math.nan], [math.inf, -math.inf]], "text": ["NaN"]}
    text = {"name": "text", "datatype": "BYTES", "shape": [-1]}
    signature = Signature.model_validate({"inputs": [numeric(), text], "outputs": OUT, "example": example})
    back = Signature.model_validate(jsonable(signature))
    assert back.example is not None
    assert math.isnan(back.example["numeric"][0][1])
    assert back.example["numeric"][1] == [math.inf, -math.inf]
    assert back.example["text"] == ["NaN"]
    assert back.input("numeric").columns == ["a", "b"]
    with pytest.raises(KeyError, match="there are"):
        back.input("nope")


@pytest.mark.parametrize(
    ("inputs", "example", "message"),
    [
        ([], None, "at least 1"),
        ([numeric(datatype="FLOAT")], None, "FP32"),
        ([numeric(shape=[-2])], None, "below -1"),
        ([numeric(columns=["a"])], None, "1 columns do not fit"),
        ([numeric(columns=["a", "a"])], None, "named twice"),
        ([numeric(), numeric()], None, "named twice"),
        ([numeric(name="")], None, "at least 1"),
        ([numeric()], {"other": []}, "example names"),
        ([numeric()], {"numeric": [[1.0]]}, r"numeric'\[0\]: has 1 of 2"),
        ([numeric()], {"numeric": 1.0}, "want a list"),
        ([numeric()], {"numeric": [[1.0, "x"]]}, r"\[0\]\[1\]: 'x' is not FP32"),
        ([numeric(datatype="INT64")], {"numeric": [[1, True]]}, "is not INT64"),
        ([numeric(datatype="BOOL")], {"numeric": [[True, 1]]}, "is not BOOL"),
    ],
)
def test_an_invalid_signature_is_refused(inputs: list, example: Any, message: str):
    with pytest.raises(ValidationError, match=message):
        Signature.model_validate({"inputs": inputs, "outputs": OUT, "example": example})


def test_a_scalar_tensor_has_no_dimensions():
    TensorSpec(name="x", datatype="FP64", shape=[]).check(1.5)
