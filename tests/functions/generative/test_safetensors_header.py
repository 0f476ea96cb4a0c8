"""Reading of a safetensors file's header, against files that the library itself writes, and damaged ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from toque.functions.generative.prompt import GenerativeError
from toque.functions.generative.version_files import read_header

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def framed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def test_the_header_is_what_the_library_wrote(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"wide": numbers, "one": np.array(7, np.int64)}, file, {"format": "pt"})
    found = read_header(file)
    with safe_open(file, framework="np") as opened:
        assert found.tensors.keys() == {*opened.keys()}
    wide = found.tensors["wide"]
    assert (wide.dtype, wide.shape, found.tensors["one"].shape) == ("F32", [2, 3], [])
    begin, end = (found.data_at + offset for offset in wide.data_offsets)
    assert file.read_bytes()[begin:end] == numbers.tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends after 0 bytes, within the length of its header"),
        (b"\x02\0\0", "ends after 3 bytes, within the length of its header"),
        (framed(b"{}")[:-1], "its header of 2 bytes goes beyond its end at 9"),
        (b"\xff" * 8 + b"{}", "its header of 18446744073709551615 bytes goes beyond its end at 10"),
        (framed(b"no"), "its header is not JSON"),
        (framed(b"\xff\xfe"), "its header is not JSON"),
        (framed(b"[" * 100_000), "its header is not JSON"),
        (framed(b"[]"), "its header is a JSON list and no object"),
        (framed(b'{"a": 1}'), "its header has at a: Input should be"),
        (framed(json.dumps({"a": ENTRY | {"shape": [-2]}}).encode()), r"its header has at a\.shape\.0: "),
        (framed(json.dumps({"a": ENTRY | {"data_offsets": [0]}}).encode()), r"at a\.data_offsets"),
    ],
)
def test_a_damaged_file_is_refused_by_its_name_with_a_remedy(tmp_path: Path, content: bytes, reason: str):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(
        GenerativeError, match=rf"^model\.safetensors: no file of safetensors, .*{reason}.*; copy it again"
    ):
        read_header(file)
