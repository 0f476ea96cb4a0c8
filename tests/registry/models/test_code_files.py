import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import random
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toque.registry.models.code_files import executable_files, executes_code, open_archive
from toque.registry.store.blobs import LocalFile, scan


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
    (tmp_path / "weights.bin").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "train.py").write_text("")
    (tmp_path / "weights.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (tmp_path / "data.zip").write_bytes(b"PK\x03\x04 no archive")
    assert names(tmp_path) == ["data.zip", "state.pt", "train.py", "weights.bin"]


def legacy_save(value: object) -> bytes:
    """A file as `torch.save` wrote it before archives: several pickles one after the other, here of protocol 0."""
    return b"".join(
        pickle.dumps(part, protocol=0) for part in (0x1950A86A20F9469CFC6C, 1001, {"x": 1}, value)
    )


CODE = {
    "protocol 0": pickle.dumps(Evil(), protocol=0),
    "protocol 1": pickle.dumps(Evil(), protocol=1),
    "inside": pickle.dumps({"w": [1.0, "x", Evil()]}, protocol=0),
    "second pickle": legacy_save(Evil()),
    "by INST": b"(S'true'\nios\nsystem\n.",
    "by OBJ": b"(cos\nsystem\nS'true'\no.",
    "protocol 4 without its header": b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "after a number that parsers disagree on": b"I0x1\n0cos\nsystem\n(S'true'\ntR.",
    "never ends": b"cos\nsystem\n(S'true'\ntR" + b"\xff" * 9,
    "too long to walk": b"N" * 200_000,
    "import alone": b"cantigravity\nfly_away\n.",
}  # fmt: skip


@pytest.mark.parametrize("content", CODE.values(), ids=CODE)
@pytest.mark.parametrize("name", ["weights.bin", "model.pt", "vocabulary"])
def test_pickles_without_a_header_are_code(tmp_path: Path, content: bytes, name: str):
    (tmp_path / name).write_bytes(content)
    assert names(tmp_path) == [name]


def test_the_old_pickles_of_the_test_run_when_they_are_loaded(monkeypatch: pytest.MonkeyPatch):
    for name in ("protocol 0", "by INST", "by OBJ", "after a number that parsers disagree on", "never ends"):
        ran: list[str] = []
        monkeypatch.setattr(os, "system", ran.append)
        if name == "protocol 0":
            monkeypatch.setattr("posix.system", ran.append)
        with contextlib.suppress(pickle.UnpicklingError, EOFError):
            pickle.loads(CODE[name])  # noqa: S301 - that it runs is what is shown
        assert ran == ["true"], name


def test_an_old_pickle_in_an_archive_is_code(program: Path):
    rewrite(program / "model.pt2", {"extra/weights.bin": CODE["protocol 0"]})
    assert names(program) == ["model.pt2"]


HARMLESS = {
    "params.json": json.dumps({"cos": ["system", 1.5]}).encode(),
    "labels.txt": b"cat\ndog\nRabbit\nowl\nbear\n",
    "words.txt": b"ios\nandroid\nReduce\n",
    "columns.csv": b"carrier,origin\nAA,EWR\nUA,JFK\n",
    "conda.yaml": b"channels:\n- conda-forge\ndependencies:\n- python=3.11\n",
    "MLmodel": b"artifact_path: model\nflavors:\n  python_function: {}\n",
    "requirements.txt": b"torch==2.13\n(optional)\nRay\n",
    "weights.safetensors": b"\x28\x01\0\0\0\0\0\0" + b'{"w":{"dtype":"F32"}}'.ljust(296) + bytes(64),
    "model.onnx": b"\x08\x09\x12\x07pytorch\x1a\x032.1:\x8f\x01",
    "model.ubj": b"{L\0\0\0\0\0\0\0\x07learner{",
    "model.txt": b"tree\nversion=v4\nnum_class=1\n",
    "model.gguf": b"GGUF\x03\0\0\0\x10\0\0\0\0\0\0\0",
    "array.npy": b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'shape': (2,)}\n" + bytes(8),
    "empty.bin": b"",
    "plain.bin": pickle.dumps({"no": ["code", 1.5]}, protocol=0),
    "plain-4.bin": pickle.dumps({"no": ["code", 1.5]}, protocol=4),
    "tags.yaml": b"a: !!str 1\nnote: wow!! numpy !=1.2\nb: !!set {x}\n",
    "structured.npy": b"\x93NUMPY\x01\0v\0" + b"{'descr': [('Origin', '<f4')], 'fortran_order': False, 'shape': (2,)}".ljust(117) + b"\n" + bytes(8),
    "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "photo.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "rows.parquet": b"PAR1\x15\x04\x15\x10",
    "rows.arrow": b"ARROW1\0\0",
    "chat_template.jinja": b"{% for message in messages %}{{ message.content }}{% endfor %}",
    "README.md": b"# A model\n\n    import torch\n",
    "LICENSE": b"Apache License\n",
    "tokenizer.model": b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02",
    "latin.csv": "caf\u00e9,1\n".encode("latin-1"),
}  # fmt: skip


def test_weights_texts_and_tables_are_no_code(tmp_path: Path):
    for name, content in HARMLESS.items():
        (tmp_path / name).write_bytes(content)
    rng = np.random.default_rng(0)
    for number in range(500):
        (tmp_path / f"raw-{number}.bin").write_bytes(rng.normal(size=400).astype(np.float32).tobytes())
        (tmp_path / f"bytes-{number}.bin").write_bytes(rng.bytes(2_000))
    assert names(tmp_path) == []


def test_random_bytes_register_as_weights_whatever_they_begin_with(tmp_path: Path):
    source = random.Random(17)
    beginnings = [
        *(bytes([first]) for first in range(256)),
        *(bytes([0x80, protocol]) for protocol in range(6)),
        *(bytes([0x78, level]) for level in (0x01, 0x5E, 0x9C, 0xDA)),
        *(bytes([code]) + bytes([0xFF] * 7) + b"\x3f" for code in (0x8D, 0x8E, 0x96)),  # a length of 1 << 62
        b"MZ", b"PK", b"BZ", b"\x1f\x8b", b"#!", b"\xca\xfe", b"{", b"\x93NUMPY\x01\0v\0",
    ]  # fmt: skip
    for number, beginning in enumerate(beginnings * 8):
        name = ("weights.bin", "weights", "weights.safetensors", "weights.gguf")[number % 4]
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / name).write_bytes(beginning + source.randbytes(1_000))
    assert names(tmp_path) == []


def packed(name: str, content: bytes, kind: str = "zip") -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def array(value: Any, save: Any = np.save) -> bytes:
    buffer = io.BytesIO()
    save(buffer, value)
    return buffer.getvalue()


PICKLED = pickle.dumps(Evil())
OBJECTS = array(np.array([Evil()], dtype=object))
CARRIERS = {
    "weights.npy": OBJECTS,
    "rows.npy": array(np.array([(1.0, Evil())], dtype=[("x", "f4"), ("y", "O")])),
    "weights.npz": array(np.array([Evil()], dtype=object), np.savez),
    "deep.npz": packed("inner.npz", packed("a.npy", OBJECTS)),
    "model.skops": packed("content.bin", PICKLED),
    "model.zip": packed("data/model.bin", PICKLED),
    "script.zip": packed("__main__.py", b"import os"),
    "weights.bin": zlib.compress(PICKLED),
    "deflated-fast.bin": zlib.compress(PICKLED, 1),
    "gzip.dat": gzip.compress(PICKLED),
    "bzip2.raw": bz2.compress(PICKLED),
    "lzma.bin": lzma.compress(PICKLED),
    "tar.bin": packed("data.pkl", PICKLED, "tar"),
    "archive.bin": packed("data.pkl", PICKLED),
    "archive.txt": packed("data.pkl", PICKLED),
    "libmodel.so.1": b"\x7fELF\x02\x01\x01",
    "custom_op": b"\x7fELF\x02\x01\x01",
    "custom_op.bin": b"\x7fELF\x02\x01\x01",
    "mac.bin": b"\xcf\xfa\xed\xfe\x07",
    "windows.bin": b"MZ".ljust(0x3C) + (0x80).to_bytes(4, "little") + bytes(0x40) + b"PE\0\0",
    "run.sh": b"id\n",
    "run": b"#!/bin/sh\nid\n",
    "notes.txt": b"#! /usr/bin/env python\nimport os\n",
    "added.pth": b"import os\n",
    "config.yaml": b"!!python/object/apply:os.system ['true']\n",
    "nested.yml": b"a: {b: [1, !!python/name:os.system ]}\n",
    "named.yaml": b"%TAG !p! tag:yaml.org,2002:python/\n---\n!p!object/apply:os.system ['true']\n",
    "verbatim.yaml": b"- !<tag:yaml.org,2002:python/object/apply:os.system> ['true']\n",
    "wide.yaml": "!!python/object/apply:os.system ['true']\n".encode("utf-16"),
    "MLmodel": b"flavors: !!python/object/apply:os.system ['true']\n",
    "weights.safetensors": PICKLED,
    "weights.gguf": pickle.dumps(Evil(), protocol=0),
    "network.h5": b"\x89HDF\r\n\x1a\n",
    "network.bin": b"\x89HDF\r\n\x1a\n",
    "saved_model.pb": b"\x08\x01",
    "page.php": b"<?php",
}  # fmt: skip


@pytest.mark.parametrize("name", CARRIERS)
def test_what_runs_code_when_it_is_loaded_is_found_under_any_name_and_in_any_packing(
    tmp_path: Path, name: str
):
    (tmp_path / name).write_bytes(CARRIERS[name])
    assert names(tmp_path) == [name]


def tar_of_the_oldest_format(content: bytes) -> bytes:
    """A tar without a magic number, which is known by its sum."""
    tar = bytearray(packed("data.pkl", content, "tar"))
    tar[257:265], tar[148:156] = bytes(8), b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    return bytes(tar)


def zlib_of_window(bits: int, content: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, bits)
    return stream.compress(content) + stream.flush()


def zlib_that_begins_empty(content: bytes) -> bytes:
    stream = zlib.compressobj()
    return b"".join(
        [*(stream.flush(zlib.Z_FULL_FLUSH) for _ in range(2_000)), stream.compress(content), stream.flush()]
    )


def header(text: str, elements: bytes) -> bytes:
    """An array of NumPy whose header is a text."""
    return b"\x93NUMPY\x01\0" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n" + elements


HARMLESS_JSON = b'{"weights": [1.5, 2.5]}'
NUMBERS = array(np.arange(4.0, dtype=np.float32))
LOOKED_INTO = {  # container: with code, its twin without, and the depth of what they hold
    "zip": (packed("data/a.bin", PICKLED), packed("data/a.bin", HARMLESS_JSON), 1),
    "zip after other bytes": (b"\0junk" * 99 + packed("a", PICKLED), b"\0junk" * 99 + packed("a", HARMLESS_JSON), 1),
    "zip before other bytes": (packed("a", PICKLED) + b"\0junk" * 99, packed("a", HARMLESS_JSON) + b"\0junk" * 99, 1),
    "npz whose member has no suffix": (packed("a", OBJECTS), packed("a", NUMBERS), 1),
    "array": (OBJECTS, NUMBERS, 0),
    "array of a type by its name": (
        header("{'descr': 'object', 'fortran_order': False, 'shape': (1,)}", PICKLED),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(8)),
        0,
    ),
    "array with numbers of Python 2": (
        header("{'descr': [('x', [('y', '|O')])], 'fortran_order': False, 'shape': (1L,)}", PICKLED),
        header("{'descr': [('O', ('<f4', (2,)))], 'fortran_order': False, 'shape': (1L,)}", bytes(8)),
        0,
    ),
    "LZMA": (lzma.compress(PICKLED, lzma.FORMAT_ALONE), lzma.compress(HARMLESS_JSON, lzma.FORMAT_ALONE), 1),
    "LZMA of an archive": (
        lzma.compress(packed("a", PICKLED), lzma.FORMAT_ALONE), lzma.compress(packed("a", NUMBERS), lzma.FORMAT_ALONE), 2,
    ),
    "pickle before a zip": (PICKLED + packed("a", NUMBERS), HARMLESS_JSON + packed("a", NUMBERS), 1),
    "program before a zip": (b"\x7fELF\x02" + packed("a", NUMBERS), b"\x7fEL.\x02" + packed("a", NUMBERS), 1),
}  # fmt: skip
PACKED = {  # code whatever is in it
    **{f"zlib, window {bits}": zlib_of_window(bits, PICKLED) for bits in range(9, 16)},
    "zlib that begins empty": zlib_that_begins_empty(PICKLED),
    "gzip": gzip.compress(PICKLED),
    "bzip2": bz2.compress(PICKLED),
    "bzip2 that begins empty": bz2.compress(b"") + bz2.compress(PICKLED),
    "xz": lzma.compress(PICKLED),
    "zstd after a frame to skip": b"\x50\x2a\x4d\x18\0\0\0\0\x28\xb5\x2f\xfd",
    "joblib of long ago": b"ZF" + b"0x40".ljust(19) + zlib.compress(PICKLED),
    "tar": packed("data.pkl", PICKLED, "tar"),
    "tar of the oldest format": tar_of_the_oldest_format(PICKLED),
}
CONTAINERS = {**LOOKED_INTO, **{name: (content, None, 0) for name, content in PACKED.items()}}
NESTINGS: dict[int, Any] = {  # by the depth that they add
    0: lambda content: content,
    1: lambda content: packed("rows/a.dat", content),
    2: lambda content: packed("b.zip", packed("a", content)),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["weights.bin", "weights", "data.zip", "rows.npz", "rows.txt", "weights.gguf", "m.pt2"]
)
@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_code_is_found_in_any_container_and_its_twin_is_data_if_it_can_be_looked_into(
    tmp_path: Path, container: str, nesting: int, name: str
):
    code, twin, depth = CONTAINERS[container]
    (tmp_path / name).write_bytes(NESTINGS[nesting](code))
    assert names(tmp_path) == [name]
    if twin is not None:
        (tmp_path / name).write_bytes(NESTINGS[nesting](twin))
        assert names(tmp_path) == ([] if depth + nesting < 3 else [name])


@given(before=st.binary(max_size=200), after=st.binary(max_size=200), deep=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_around_an_archive_hide_nothing(tmp_path: Path, before: bytes, after: bytes, deep: bool):  # noqa: FBT001 - drawn
    for content, is_code in ((PICKLED, True), (HARMLESS_JSON, False)):
        inner = packed("a.bin", content)
        (tmp_path / "weights.bin").write_bytes(before + (packed("b", inner) if deep else inner) + after)
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(tmp_path / "weights.bin"):
            assert names(tmp_path) == (["weights.bin"] if is_code else [])


def test_what_lies_too_deep_or_is_too_large_is_code_and_its_shallow_twin_is_data(tmp_path: Path):
    deep = HARMLESS_JSON
    for level in range(4):
        (tmp_path / f"level-{level}.zip").write_bytes(deep := packed("a.zip" if level else "a.json", deep))
    (tmp_path / "bomb.bin").write_bytes(lzma.compress(bytes(65 << 20), lzma.FORMAT_ALONE, preset=0))
    (tmp_path / "small.bin").write_bytes(lzma.compress(bytes(1 << 20), lzma.FORMAT_ALONE, preset=0))
    assert names(tmp_path) == ["bomb.bin", "level-2.zip", "level-3.zip"]


def test_a_directory_of_an_archive_that_says_it_is_large_is_not_read(tmp_path: Path):
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(8 << 30)
        file.seek(0, io.SEEK_END)
        file.write(b"PK\x05\x06" + bytes(8) + (3 << 30).to_bytes(4, "little") + bytes(6))
    size = (tmp_path / "weights.bin").stat().st_size
    local = LocalFile(path=tmp_path / "weights.bin", sha256="", size=size, mtime_ns=0)
    assert executable_files({"weights.bin": local}) == ("weights.bin",)


def test_arrays_that_look_like_lzma_without_a_header_are_data(tmp_path: Path):
    random_numbers = np.random.default_rng(3)
    for kind in ("i8", "i4", "i2", "u1", "f8", "f4", "?"):
        for number in range(40):
            sparse = random_numbers.random(20_000) < (0.0001, 0.01)[number % 2]
            (tmp_path / f"{kind.strip('?')}-{number}.bin").write_bytes(sparse.astype(kind).tobytes())
    assert names(tmp_path) == []


def test_archives_of_data_are_data(tmp_path: Path):
    rows = np.zeros((2, 3), np.float32)
    (tmp_path / "weights.npz").write_bytes(array({"a": rows}["a"], np.savez))
    (tmp_path / "packed.npz").write_bytes(array(rows, np.savez_compressed))
    (tmp_path / "model.skops").write_bytes(packed("schema.json", b"{}"))
    (tmp_path / "tables.zip").write_bytes(packed("rows/train.csv", b"a,b\n1,2\n"))
    (tmp_path / "one-line.zip").write_bytes(packed("rows.json", b"[" + b"0," * (2 << 20) + b"0]"))
    (tmp_path / "zeros.npz").write_bytes(array(np.zeros(9 << 20), np.savez))
    assert names(tmp_path) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_unpacks_to_many_times_its_size_is_not_unpacked(tmp_path: Path, method: int):
    with zipfile.ZipFile(tmp_path / "model.zip", "w", method) as archive:
        archive.writestr("rows.csv", bytes(32 << 20))
    with pytest.raises(zipfile.BadZipFile, match="without compression"):
        open_archive(tmp_path / "model.zip")
    assert names(tmp_path) == ["model.zip"]


@pytest.mark.parametrize("opcode", b"VXTB\x8d\x8e\x96")
def test_a_large_file_is_not_read_to_find_that_it_is_no_pickle(tmp_path: Path, opcode: int):
    with (tmp_path / "weights.bin").open("w+b") as file:
        file.write(bytes([opcode]) + b"\xfe" * 20 + b"\n")
        file.truncate(64 << 30)
        file.seek(0)
        assert not executes_code(file, 64 << 30)
