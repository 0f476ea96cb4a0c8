"""Exported programs, called as directly as they can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from functions.training.program import export_program, save_program
from ray_apps.predictor.loaded import load_version
from ray_apps.predictor.scoring import DirectScorer, load_scorer
from registry import ModelVersion, Signature, TensorSpec


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
