import io
import json
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.functions.training.tabular_setup import TensorMaker
from toque.functions.model_formats.errors import ArtifactRefused, TrainingError
from toque.functions.model_formats.program import (
    copy_without_samples,
    export_program,
    inspect_program,
    load_program,
    save_program,
)

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, numeric, categorical):
        return torch.sigmoid(self.layer(numeric)) + (categorical % 3).float().sum(dim=1, keepdim=True)


INPUTS = {"numeric": torch.rand(8, 3), "categorical": torch.arange(16).reshape(8, 2)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    save_program(export_program(Small(), INPUTS), path)
    return path.read_bytes()


def test_programs_that_are_exported_at_once_are_as_if_one_after_the_other():
    models = [Small() for _ in range(8)]
    with ThreadPoolExecutor(4) as threads:
        exported = list(threads.map(lambda model: export_program(model, INPUTS), models))
    for model, program in zip(models, exported, strict=True):
        torch.testing.assert_close(program.module()(*INPUTS.values()), model(*INPUTS.values()))
    assert not torch.compiler.is_compiling()


def test_programs_are_read_at_once_and_while_others_are_exported(saved):
    work = [lambda: load_program(saved)] * 24 + [lambda: export_program(Small(), INPUTS).module()] * 4
    with ThreadPoolExecutor(4) as threads:
        modules = list(threads.map(lambda do: do(), work[::2] + work[1::2]))
    assert {module(*INPUTS.values()).shape for module in modules} == {Small()(*INPUTS.values()).shape}


def as_it_is(_, data):
    return data


def rewritten(saved, change=as_it_is, *, more=()):
    """The archive with each member passed through `change`, and `more` members."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as source, zipfile.ZipFile(out, "w") as target:
        top = source.namelist()[0].split("/")[0]
        for info in source.infolist():
            target.writestr(info.filename, change(info.filename.partition("/")[2], source.read(info)))
        for name, data in more:
            target.writestr(f"{top}/{name}", data)
    return out.getvalue()


def edited(saved, member, edit):
    def change(name, data):
        if name != member:
            return data
        document = json.loads(data)
        edit(document)
        return json.dumps(document).encode()

    return rewritten(saved, change)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_saved_program_answers_as_the_model_for_any_batch(rows, tmp_path):
    model = Small()
    save_program(export_program(model, INPUTS), tmp_path / "model.pt2")
    program = load_program((tmp_path / "model.pt2").read_bytes())
    part = [value[:rows] for value in INPUTS.values()]
    torch.testing.assert_close(program(*part), model(*part))


def test_what_a_program_holds_and_makes_is_put_on_the_device(tmp_path):
    save_program(export_program(TensorMaker(), {"x": torch.rand(4, 2)}), tmp_path / "model.pt2")
    data = (tmp_path / "model.pt2").read_bytes()
    program = load_program(data, device="meta")  # refuses to reckon with tensors that are elsewhere
    assert program(torch.rand(7, 2, device="meta")).device.type == "meta"
    with pytest.raises(RuntimeError, match="device"):
        load_program(data)(torch.rand(7, 2, device="meta"))


def test_what_is_written_holds_no_pickle_and_no_path_of_this_machine(saved):
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        for name in archive.namelist():
            assert not archive.read(name).startswith((b"\x80", b"PK")), name
            assert b".py" not in archive.read(name), name


def test_a_model_that_answers_otherwise_by_batch_size_is_not_saved():
    class Odd(torch.nn.Module):
        calls = 0

        def forward(self, x):
            Odd.calls += 1
            return x + (0.0 if torch.compiler.is_exporting() else 1.0)

    with pytest.raises(TrainingError, match="differs from the model on 1 rows"):
        export_program(Odd(), {"x": torch.rand(4, 2)})


def first_node(document):
    return document["graph_module"]["graph"]["nodes"][0]


def call_a_shell(document):
    first_node(document)["target"] = "torch.os.system"


def read_a_file(document):
    first_node(document)["target"] = "torch.ops.aten.from_file.default"


def name_with_code(document):
    first_node(document)["outputs"][0]["as_tensor"]["name"] = "x = __import__('os').system('true')"


def key_with_code(document):
    document["graph_module"]["graph"]["tensor_values"]["a; import os"] = {}


def size_with_code(document):
    values = document["graph_module"]["graph"]["tensor_values"]
    symbolic = next(s for v in values.values() for s in v["sizes"] if "as_expr" in s)
    symbolic["as_expr"]["expr_str"] = "__import__('os').system('true')"


def size_of_many_digits(document):
    values = document["graph_module"]["graph"]["tensor_values"]
    symbolic = next(s for v in values.values() for s in v["sizes"] if "as_expr" in s)
    symbolic["as_expr"]["expr_str"] = "1" * 10_000 + "x"  # divided in every way this takes for ever


def guard_code(document):
    document["guards_code"] = ["__import__('os').system('true')"]


def metadata(document):
    first_node(document)["metadata"] = {"custom": "x"}


def enum_import(document):
    signature = document["graph_module"]["module_call_graph"][0]["signature"]
    leaf = {
        "type": "builtins.dict",
        "context": '{"__enum__": true, "fqn": "os:x", "name": "y"}',
        "children_spec": [],
    }
    signature["out_spec"] = json.dumps([1, leaf])


def defaultdict_import(document):
    signature = document["graph_module"]["module_call_graph"][0]["signature"]
    leaf = {"type": "collections.defaultdict", "context": "[]", "children_spec": []}
    signature["in_spec"] = json.dumps([1, leaf])


@pytest.mark.parametrize(
    "edit",
    [
        call_a_shell,
        read_a_file,
        name_with_code,
        key_with_code,
        size_with_code,
        size_of_many_digits,
        guard_code,
        metadata,
        enum_import,
        defaultdict_import,
    ],
)
def test_a_program_that_could_run_code_is_refused(saved, edit):
    with pytest.raises(ArtifactRefused):
        load_program(edited(saved, MODEL, edit))


def test_pickled_weights_are_refused(saved):
    def edit(document):
        next(iter(document["config"].values()))["use_pickle"] = True

    with pytest.raises(ArtifactRefused, match="is pickled"):
        load_program(edited(saved, WEIGHTS, edit))


def test_pickled_sample_inputs_are_refused(saved):
    with pytest.raises(ArtifactRefused, match="sample inputs"):
        load_program(rewritten(saved, lambda name, data: b"\x80\x02." if name == SAMPLES else data))


@pytest.mark.parametrize(
    "member",
    [
        "data/weights/model.pt",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/aotinductor/model/x.so",
        "extra/anything",
        "models/other.json",
    ],
)
def test_members_that_torch_would_unpickle_or_load_are_refused(saved, member):
    with pytest.raises(ArtifactRefused, match="has no place"):
        load_program(rewritten(saved, more=[(member, b"x")]))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", b"\x80\x04N."])
def test_what_is_no_archive_is_refused(data):
    with pytest.raises(ArtifactRefused, match="not an exported program"):
        inspect_program(data)


def test_an_archive_of_plain_torch_export_is_refused_with_the_remedy():
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Small(), tuple(INPUTS.values())), buffer)
    with pytest.raises(ArtifactRefused, match="save_program"):
        inspect_program(buffer.getvalue())


def test_a_flipped_bit_never_reaches_torch_unnoticed(saved):
    at = saved.index(b"torch.ops.aten")
    broken = saved[:at] + bytes([saved[at] ^ 1]) + saved[at + 1 :]
    with pytest.raises(ArtifactRefused):
        load_program(broken)


def packed(size: int, method: int, member: str = "data/weights/weight_0") -> bytes:
    """An archive with a member of zeros beside what a program has."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", method, compresslevel=1) as archive,
        archive.open(f"m/{member}", "w") as content,
    ):
        for _ in range(size >> 20):
            content.write(bytes(1 << 20))
    return out.getvalue()


def peak_of(work) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactRefused):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("member", ["data/weights/weight_0", MODEL, WEIGHTS, "data/sample_inputs/model.pt"])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_unpacks_to_many_times_its_size_takes_no_memory(tmp_path, method, member):
    source = tmp_path / "logged.pt2"
    source.write_bytes(packed(64 << 20, method, member))
    assert peak_of(lambda: inspect_program(source.read_bytes())) < 4 << 20
    assert peak_of(lambda: copy_without_samples(source, tmp_path / "model.pt2")) < 4 << 20
    assert not (tmp_path / "model.pt2").exists()


def test_weights_are_copied_piece_by_piece_and_a_graph_that_is_too_large_is_not_parsed(tmp_path):
    source = tmp_path / "logged.pt2"
    for member, says in (("data/weights/weight_0", "is absent"), (MODEL, "at most 33,554,432 are read")):
        source.write_bytes(packed(48 << 20, zipfile.ZIP_STORED, member))
        assert peak_of(lambda: copy_without_samples(source, tmp_path / "model.pt2")) < 4 << 20
        with pytest.raises(ArtifactRefused, match=says):
            inspect_program(source)


def test_an_archive_that_is_broken_where_it_is_packed_is_refused(saved):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"m/{MODEL}", b"{}" * 500)
    data = bytearray(out.getvalue())
    data[60:64] = b"\xff\xff\xff\xff"
    with pytest.raises(ArtifactRefused, match="not an exported program"):
        inspect_program(bytes(data))
