"""Weights that are read from a base's safetensors by rows, and files that end too early."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toque.functions.training.errors import TrainingDataError
from toque.functions.training.llm.network import WeightFile, weight_files

WEIGHT = torch.arange(12, dtype=torch.bfloat16).reshape(4, 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"layer": WEIGHT, "one": torch.tensor(5.0)}, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


def test_rows_are_those_that_were_saved(file: Path):
    found = weight_files(file.parent)
    assert {*found} == {"layer", "one"}
    assert torch.equal(found["layer"].rows("layer", range(1, 3)), WEIGHT[1:3])
    assert torch.equal(found["layer"].whole("layer"), WEIGHT)
    assert torch.equal(found["one"].whole("one"), torch.tensor(5.0))


@pytest.mark.parametrize(
    ("kept_bytes", "reason"),
    [(5, "within the length of its header"), (40, "its header of .* goes beyond its end at 40"),
     (-2, "ends 2 bytes too early, within weight")],
)  # fmt: skip
def test_a_base_that_ends_too_early_is_refused_by_its_file(file: Path, kept_bytes: int, reason: str):
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(
        TrainingDataError, match=rf"^model\.safetensors.*{reason}.*(copy it again|register the base again)"
    ):
        [weight.whole(name) for name, weight in weight_files(file.parent).items()]


def test_a_damaged_header_is_an_error_of_training(file: Path):
    file.write_bytes(b"\x02\0\0\0\0\0\0\0[]")
    with pytest.raises(TrainingDataError, match=r"model\.safetensors: .* no object; copy it again"):
        WeightFile(file).names()
