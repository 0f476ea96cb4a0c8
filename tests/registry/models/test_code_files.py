import contextlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from registry.models.code_files import executable_files
from registry.store.blobs import scan


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def names(folder: Path) -> list[str]:
    return sorted(executable_files(scan(folder)))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """An exported program as torch writes it, with tensors as sample inputs."""
    folder = tmp_path / "program"
    folder.mkdir()
    exported = torch.export.export(torch.nn.Linear(2, 1), (torch.ones(3, 2),))
    torch.export.save(exported, folder / "model.pt2")
    return folder


def rewrite(path: Path, changes: dict[str, bytes]) -> None:
    """Copy an archive with members replaced or added, by the end of their names."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    for end, content in changes.items():
        name = next((name for name in members if name.endswith(end)), f"archive/{end}")
        members[name] = content
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_program_with_tensors_as_sample_inputs_is_no_code(program: Path):
    assert names(program) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_inputs/model.pt": saved(Evil())},
        {"sample_inputs/model.pt": saved({"x": [torch.ones(1), Evil()]})},
        {"sample_inputs/model.pt": pickle.dumps(Evil())},
        {"model_weights_config.json": json.dumps({"config": {"w": {"use_pickle": True}}}).encode()},
        {"model_constants_config.json": json.dumps({"config": {"c": {"path_name": "opaque_obj_0"}}}).encode()},
        {"data/constants/custom_obj_0": b"x"},
        {"data/aotinductor/model/wrapper.so": b"x"},
        {"data.pkl": b"x"},
        {"model_weights_config.json": b"{"},
    ],
    ids=["reduce", "reduce-inside", "raw-pickle", "weights", "constants", "object", "library", "state", "broken"],
)  # fmt: skip
def test_a_program_with_anything_pickled_is_code(program: Path, changes: dict[str, bytes]):
    rewrite(program / "model.pt2", changes)
    assert names(program) == ["model.pt2"]
    (program / "model.pt2").rename(program / "renamed.bin")  # a name does not make it harmless
    assert names(program) == ["renamed.bin"]


def test_code_in_a_pickled_payload_runs_when_torch_loads_it(program: Path, tmp_path: Path):
    """Shows why pickles count as code: torch's own reader executes pickled sample inputs."""
    witness = tmp_path / "ran"

    class Writes:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    rewrite(program / "model.pt2", {"sample_inputs/model.pt": saved({"x": Writes()})})
    with contextlib.suppress(Exception):  # torch may stumble over what comes after
        torch.export.load(program / "model.pt2")
    assert witness.exists()


def test_states_pickles_and_scripts_are_code(tmp_path: Path):
    (tmp_path / "state.pt").write_bytes(saved({"w": torch.ones(2)}))
    (tmp_path / "weights.bin").write_bytes(pickle.dumps([1]))
    (tmp_path / "train.py").write_text("")
    (tmp_path / "weights.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (tmp_path / "data.zip").write_bytes(b"PK\x03\x04 no archive")
    assert names(tmp_path) == ["state.pt", "train.py", "weights.bin"]
