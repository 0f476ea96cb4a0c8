"""Exported programs, called as directly as they can be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toque.functions.model_formats.program import export_program, save_program
from toque.ray_apps.predictor.versions import scoring
from toque.ray_apps.predictor.versions.loaded import load_version
from toque.ray_apps.predictor.versions.scoring import DIRECT, DirectScorer, load_scorer
from toque.registry import ModelVersion, Signature, TensorSpec


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_a_program_of_a_fixed_number_of_rows_is_called_directly_too(tmp_path: Path) -> None:
    program = torch.export.export(Doubled(), (torch.ones(1, 2),))
    save_program(program, tmp_path / "model.pt2")
    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[1, 2])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[1, 2])],
        example={"x": [[1.0, 2.0]]},
    )
    assert isinstance(load_scorer(tmp_path, signature), DirectScorer)
    record = ModelVersion.model_construct(model="fixed", version=1, signature=signature, tags={}, files={})
    version = load_version(record, tmp_path, load_scorer)
    assert version.predict({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[2.0, 2.0]]


def test_a_program_of_any_number_of_rows_is_compared_on_several(tmp_path: Path) -> None:
    save_program(export_program(Doubled(), {"x": torch.ones(2, 2)}), tmp_path / "model.pt2")
    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 2])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 2])],
        example={"x": [[1.0, 2.0]]},
    )
    assert isinstance(load_scorer(tmp_path, signature), DirectScorer)


def test_a_program_whose_operators_cannot_be_called_so_is_called_as_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scoring, "DIRECT", {torch.ops.aten.mul.Tensor: torch.relu})  # takes one argument
    save_program(export_program(Doubled(), {"x": torch.ones(2, 2)}), tmp_path / "model.pt2")
    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 2])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 2])],
        example={"x": [[1.0, 2.0]]},
    )
    scorer = load_scorer(tmp_path, signature)
    assert not isinstance(scorer, DirectScorer)
    assert scorer.predict({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[2.0, 2.0]]
    assert "cannot be called directly" in caplog.text


aten = torch.ops.aten
X = torch.tensor([[1.5, -2.0, float("nan"), float("inf")], [0.0, -0.0, 1e-30, 3.0]])
Y = torch.linspace(-3, 4, 8).reshape(2, 4)
W, B = torch.linspace(-1, 1, 12).reshape(3, 4), torch.tensor([0.1, 0.2, 0.3])
WORDS, PLACES = torch.tensor([[1, 5, 9], [2, 4, 6]]), torch.tensor([[0, 2], [1, 1]])
CASES: Mapping[Any, list[tuple[Any, ...]]] = {  # as exported programs call them
    aten.add.Tensor: [(X, Y), (X, 1.0), (WORDS, 1)],
    aten.addmm.default: [(B, Y, W.t())],
    aten.cat.default: [([X, Y], 1)],
    aten.clamp.default: [(X, 0.0, 1.0), (WORDS, None, 5)],
    aten.contiguous.default: [(X.t(),)],
    aten.div.Tensor: [(X, 3.0), (WORDS, 2)],
    aten.dropout.default: [(X, 0.3, False)],
    aten.embedding.default: [(W, PLACES)],
    aten.eq.Tensor: [(X, Y), (WORDS, WORDS)],
    aten.flatten.using_ints: [(W.reshape(3, 2, 2), 1)],
    aten.gather.default: [(WORDS, 1, PLACES)],
    aten.gelu.default: [(X,)],
    aten.isfinite.default: [(X,)],
    aten.layer_norm.default: [(Y, [4], torch.ones(4), torch.zeros(4))],
    aten.linear.default: [(Y, W, B), (Y, W)],
    aten.matmul.default: [(Y, W.t())],
    aten.mul.Tensor: [(X, Y), (X, 2)],
    aten.pow.Tensor_Scalar: [(X, 2), (Y, 0.5)],
    aten.relu.default: [(X,)],
    aten.rsqrt.default: [(X,)],
    aten.searchsorted.Tensor: [(WORDS, PLACES)],
    aten.sigmoid.default: [(X,)],
    aten.silu.default: [(X,)],
    aten.softmax.int: [(Y, 1), (Y, -1)],
    aten.sub.Tensor: [(X, Y), (X, 1.0)],
    aten.t.default: [(X,)],
    aten.tanh.default: [(X,)],
    aten.unsqueeze.default: [(X, 2)],
    aten.where.Scalar: [(X > 0, 0.0, 1.0), (X > 0, 1, 0)],
    aten.where.ScalarOther: [(WORDS > 4, WORDS, 0), (X > 0, X, 1.0)],
    aten.where.self: [(X > 0, X, Y)],
}


def test_operators_called_directly_answer_to_the_bit() -> None:
    assert set(CASES) == set(DIRECT)
    for operator, calls in CASES.items():
        for arguments in calls:
            wanted, got = operator(*arguments), DIRECT[operator](*arguments)
            assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride()), (
                operator
            )
            assert got.numpy().tobytes() == wanted.numpy().tobytes(), operator
