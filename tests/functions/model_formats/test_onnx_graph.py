"""A graph names no file but its own, wherever in it the name stands and whatever bits of it are changed."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from toque.functions.model_formats.derive import derive_signature
from toque.functions.model_formats.errors import ArtifactRefused
from toque.functions.model_formats.flavors import open_graph, refuse_other_files
from toque.functions.model_formats.load import load
from toque.registry import Signature, TensorSpec

SECRET = b"what stands in a file of the worker"
SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 1])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
)


def elsewhere(name: str = "stored", location: str = "secrets/key") -> Any:
    """A tensor of bytes that lie in another file."""
    tensor = TensorProto(
        name=name, data_type=TensorProto.UINT8, dims=[len(SECRET)], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(SECRET)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def answering(nodes: list[Any], initializers: list[Any] = [], functions: list[Any] = []) -> Any:  # noqa: B006 - read only
    """A model that answers byte x of `stored`, which `nodes` or `initializers` make."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in "xy")
    read = [
        helper.make_node("Cast", ["x"], ["at"], to=TensorProto.INT64),
        helper.make_node("Gather", ["stored", "at"], ["byte"], axis=0),
        helper.make_node("Cast", ["byte"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph([*nodes, *read], "g", [x], [y], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)


def sparse() -> Any:
    indices = numpy_helper.from_array(np.arange(len(SECRET)), "indices")
    return helper.make_sparse_tensor(elsewhere("values"), indices, [len(SECRET)])


def branches(tensor: Any) -> Any:
    """An If whose branches make `stored`."""
    out = helper.make_tensor_value_info("z", TensorProto.UINT8, [len(SECRET)])
    inner = [
        helper.make_graph([helper.make_node("Constant", [], ["z"], value=tensor)], name, [], [out])
        for name in ("then", "else")
    ]
    condition = helper.make_node(
        "Constant", [], ["c"], value=helper.make_tensor("b", TensorProto.BOOL, [], [True])
    )
    return [condition, helper.make_node("If", ["c"], ["stored"], then_branch=inner[0], else_branch=inner[1])]


def function() -> Any:
    body = [helper.make_node("Constant", [], ["stored"], value=elsewhere())]
    return helper.make_function("own", "Makes", [], ["stored"], body, [helper.make_opsetid("", 17)])


def in_training() -> Any:
    model = answering([], [numpy_helper.from_array(np.zeros(3, np.uint8), "stored")])
    model.training_info.add().initialization.CopyFrom(helper.make_graph([], "t", [], [], [elsewhere()]))
    return model


PLACES: dict[str, Callable[[], Any]] = {
    "initializer": lambda: answering([], [elsewhere()]),
    "constant": lambda: answering([helper.make_node("Constant", [], ["stored"], value=elsewhere())]),
    "branch": lambda: answering(branches(elsewhere())),
    "function": lambda: answering(
        [helper.make_node("Makes", [], ["stored"], domain="own")], functions=[function()]
    ),
    "sparse constant": lambda: answering(
        [helper.make_node("Constant", [], ["stored"], sparse_value=sparse())]
    ),
    "address in memory": lambda: answering([], [elsewhere(location="*/_ORT_MEM_ADDR_/*")]),
    "absolute": lambda: answering([], [elsewhere(location="/proc/self/environ")]),
    "tensors of an attribute": lambda: answering(
        [helper.make_node("Constant", [], ["stored"], values=[elsewhere()])]
    ),
    "training": in_training,
    "node of a compiled graph": lambda: answering(
        [
            helper.make_node(
                "EPContext", [], ["stored"], domain="com.microsoft", ep_cache_context="secrets/key"
            )
        ]
    ),
}


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of a process that has secrets below it."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/key").write_bytes(SECRET)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "version").mkdir()
    return tmp_path / "version"


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_refused_wherever_it_is_named(worker: Path, place: str) -> None:
    (worker / "model.onnx").write_bytes(PLACES[place]().SerializeToString())
    with pytest.raises(ArtifactRefused, match=r"keeps a tensor elsewhere|reads files"):
        load(worker, signature=SIGNATURE)
    with pytest.raises(ArtifactRefused, match=r"keeps a tensor elsewhere|reads files"):
        derive_signature(worker)


def test_a_graph_that_holds_its_tensors_answers(worker: Path) -> None:
    stored = numpy_helper.from_array(np.frombuffer(SECRET, np.uint8), "stored")
    for model in (answering([], [stored]), answering(branches(stored))):
        (worker / "model.onnx").write_bytes(model.SerializeToString())
        answer = load(worker, signature=SIGNATURE).predict({"x": np.array([[0.0], [5.0]], np.float32)})["y"]
        assert answer.ravel().tolist() == [SECRET[0], SECRET[5]]


def test_the_readers_own_format_is_refused(worker: Path) -> None:
    (worker / "model.onnx").write_bytes(b"\x08\0\0\0ORTM" + bytes(64))
    with pytest.raises(ArtifactRefused, match="cannot be read"):
        open_graph(worker / "model.onnx")


def tensors_of(message: Any) -> Iterator[Any]:
    """Every tensor in a message, by the descriptions that the library itself was made of."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from tensors_of(inner)


def test_whatever_is_changed_in_a_file_no_tensor_elsewhere_is_overlooked() -> None:
    random_source, seen = random.Random(11), {"passed": 0, "refused": 0, "elsewhere": 0}
    originals = [make().SerializeToString() for make in PLACES.values()]
    for _ in range(6_000):
        data = bytearray(random_source.choice(originals))
        for _ in range(random_source.randint(1, 4)):
            data[random_source.randrange(len(data))] = random_source.randrange(256)
        try:
            refuse_other_files(bytes(data))
        except ArtifactRefused:
            seen["refused"] += 1
            continue
        seen["passed"] += 1
        try:
            model = onnx.load_model_from_string(bytes(data))
        except Exception:  # noqa: BLE001, S112 - google's reader refuses it, with errors of its own
            continue
        outside = [tensor for tensor in tensors_of(model) if tensor.data_location or tensor.external_data]
        seen["elsewhere"] += bool(outside)
    assert seen["elsewhere"] == 0
    assert min(seen["passed"], seen["refused"]) > 50, seen
