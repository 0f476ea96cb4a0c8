"""Files are loaded first where a crash, a bomb, an endless loop or a connection harms nobody else."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from toque.functions.model_formats.errors import ArtifactRefused
from toque.functions.model_formats.sandbox import Sandbox, SandboxLimits
from toque.functions.model_formats.sandbox.messages import (
    FILES,
    RESOURCES,
    SYSTEM_CALLS,
    LoadRequest,
    Verdict,
)
from toque.registry import Forbidden, Signature, TensorSpec

SIGNATURE = Signature(
    inputs=[TensorSpec(name="numeric", datatype="FP32", shape=[-1, 2])],
    outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
    example={"numeric": [[1.0, float("nan")]]},
)
LIMITS = SandboxLimits(memory_bytes=1 << 30, cpu_s=1, wall_s=60)
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "TOQUE_PROJECT": "tests.functions.model_formats.sandbox.hostile",
    "TOQUE_REDIS_URL": "redis://:a-secret@somewhere",
}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    made = Sandbox(LIMITS, verdicts=tmp_path_factory.mktemp("verdicts") / "v", environment=ENVIRONMENT)
    yield made
    made.close()


@pytest.fixture
def held(sandbox: Sandbox, scorer: Callable[..., Path]) -> tuple[str, ...]:
    """What the kernel of this machine limits."""
    sandbox.check(scorer("nothing"), SIGNATURE)
    assert sandbox.held is not None
    assert RESOURCES in sandbox.held
    return sandbox.held


@pytest.fixture
def scorer(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, argument: object = "") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "python_model.json").write_text(json.dumps({"scorer": name}))
        (folder / "argument").write_text(str(argument))
        return folder

    return make


def refusal(sandbox: Sandbox, folder: Path) -> str:
    with pytest.raises(ArtifactRefused) as refused:
        sandbox.check(folder, SIGNATURE)
    text = str(refused.value)
    assert "memory_bytes=1,07" in text
    assert "options.sandbox" in text
    return text


@pytest.mark.parametrize(
    ("act", "words"),
    [("crash", "by signal SIGSEGV"), ("abort", "by signal SIGABRT"), ("allocate", "more memory than memory_bytes"),
     ("loop", "more than cpu_s=1 on a processor"), ("lie", "ended the process that loaded it")],
)  # fmt: skip
def test_what_ends_or_exhausts_a_process_ends_only_its_own(
    sandbox: Sandbox, scorer: Callable[..., Path], act: str, words: str
) -> None:
    assert words in refusal(sandbox, scorer(act))
    sandbox.check(scorer("nothing"), SIGNATURE)


def test_a_load_that_hangs_is_ended_by_the_clock(tmp_path: Path, scorer: Callable[..., Path]) -> None:
    impatient = Sandbox(
        LIMITS.model_copy(update={"wall_s": 0.3}), verdicts=tmp_path / "v", environment=ENVIRONMENT
    )
    with pytest.raises(ArtifactRefused, match=r"longer than wall_s=0\.3"):
        impatient.check(scorer("hang"), SIGNATURE)
    impatient.close()


def test_a_load_reaches_no_server(
    sandbox: Sandbox, scorer: Callable[..., Path], held: tuple[str, ...]
) -> None:
    if SYSTEM_CALLS not in held and FILES not in held:
        pytest.skip("this kernel has neither seccomp nor Landlock")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert re.search("not permitted|denied", refusal(sandbox, scorer("connect", server.getsockname()[1])))
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("act", ["write", "remove", "fork", "run", "kill", "raise_limit"])
def test_a_load_changes_no_file_and_no_process(
    sandbox: Sandbox, scorer: Callable[..., Path], held: tuple[str, ...], act: str
) -> None:
    if SYSTEM_CALLS not in held:
        pytest.skip("this kernel has no seccomp")
    assert re.search("not permitted|denied|not allowed", refusal(sandbox, scorer(act, "as it was")))
    assert (scorer(act, "as it was") / "argument").read_text() == "as it was"
    sandbox.check(scorer("nothing"), SIGNATURE)


def test_a_load_reads_neither_secrets_nor_other_processes(
    sandbox: Sandbox, scorer: Callable[..., Path], held: tuple[str, ...], tmp_path: Path
) -> None:
    assert "a-secret" not in refusal(sandbox, scorer("environment"))
    if FILES not in held:
        pytest.skip("this kernel has no Landlock")
    secret = tmp_path / "admin.token"
    secret.write_text("tq_secret")
    assert "Permission denied" in refusal(sandbox, scorer("read", secret))
    assert "denied" in refusal(sandbox, scorer("spy"))


def test_a_missing_limit_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = Sandbox(LIMITS, verdicts=tmp_path / "v", environment=ENVIRONMENT)
    for _ in range(2):
        made.tell((RESOURCES, FILES))
    (record,) = caplog.records
    assert f"this kernel does not limit {SYSTEM_CALLS}; it limits {RESOURCES}; {FILES}" in record.getMessage()


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    weights = numpy_helper.from_array(np.ones((2, 1), np.float32), "w")
    made = helper.make_graph(
        [helper.make_node("MatMul", ["numeric", "w"], ["probability"])],
        "linear",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows", 1])],
        [weights],
    )
    folder = tmp_path / "graph"
    folder.mkdir()
    save(
        helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]),
        folder / "model.onnx",
    )
    return folder


def test_files_that_passed_are_not_loaded_again_here_and_others_are(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Sandbox(LIMITS, verdicts=tmp_path / "v", environment=ENVIRONMENT)
    first.check(graph, SIGNATURE)
    first.close()
    assert (tmp_path / "v").stat().st_mode & 0o777 == 0o700
    second = Sandbox(LIMITS, verdicts=tmp_path / "v", environment=ENVIRONMENT)
    asked: list[LoadRequest] = []

    def ask(_: Sandbox, request: LoadRequest) -> Verdict:
        asked.append(request)
        return Verdict()

    monkeypatch.setattr(Sandbox, "_ask", ask)
    second.check(graph, SIGNATURE)
    assert asked == []
    second.check(graph, SIGNATURE.model_copy(update={"example": None}))
    (graph / "model.onnx").write_bytes((graph / "model.onnx").read_bytes() + b"\x00")
    second.check(graph, SIGNATURE)
    assert len(asked) == 2


def test_verdicts_in_a_folder_that_others_may_write_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v").chmod(0o777)
    with pytest.raises(Forbidden, match="others may have written"):
        Sandbox(LIMITS, verdicts=tmp_path / "v", environment=ENVIRONMENT)


def test_a_file_that_its_library_cannot_parse_is_refused(sandbox: Sandbox, graph: Path) -> None:
    data = (graph / "model.onnx").read_bytes()
    (graph / "model.onnx").write_bytes(data[: len(data) // 2])
    assert "model.onnx cannot be read" in refusal(sandbox, graph)


def test_an_answer_that_does_not_fit_the_signature_is_refused(sandbox: Sandbox, graph: Path) -> None:
    spec = TensorSpec(name="probability", datatype="FP32", shape=[-1, 3])
    with pytest.raises(ArtifactRefused, match="output 'probability' has shape"):
        sandbox.check(graph, SIGNATURE.model_copy(update={"outputs": [spec]}))
