"""Programs on a CUDA device answer as on the CPU; where no device is needed, the CPU stands in for one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray import serve
from ray.exceptions import RayTaskError

from tests.functions.training.tabular_setup import COLUMNS, FAST, TensorMaker, examples
from toque.functions.model_formats.load import ScoringModel, load
from toque.functions.model_formats.program import export_program, load_program, save_program
from toque.functions.training.tabular.fitting import fit, prepare
from toque.functions.training.tabular.job import tabular_signature, write_artifact
from toque.ray_apps.predictor import DedicatedOptions, PredictorOptions, breakdown
from toque.ray_apps.predictor.deploy import dedicated
from toque.ray_apps.predictor.deploy.dedicated import ServeDeployments, VersionReplica, device_of
from toque.ray_apps.predictor.protocol.errors import DeviceFailed, DeviceOutOfMemory
from toque.ray_apps.predictor.versions import scoring
from toque.ray_apps.predictor.versions import scoring as fused
from toque.ray_apps.predictor.versions.cuda_scoring import (
    MAX_PADDED_ROWS,
    REPEATS,
    CapturedGraph,
    CudaDevice,
    CudaScorer,
    Device,
    GraphCache,
    Outputs,
    StagingBuffer,
    UnfitForDevice,
    difference,
    is_out_of_memory,
    rows_are_independent,
)
from toque.ray_apps.predictor.versions.loaded import LoadError, load_version
from toque.ray_apps.predictor.versions.scoring import DirectScorer, load_scorer, place_on_device
from toque.registry import ModelVersion, Signature, TensorSpec


class HostDevice:
    """The CPU as a device: work is done at once, and a replay runs the program again into the same tensors.

    refuses: the error of a capture. grown: sizes of the buffers that were allocated.
    """

    torch_device = torch.device("cpu")

    def __init__(self, *, refuses: str = "") -> None:
        self.refuses, self.captures, self.replays = refuses, 0, 0
        self.grown: list[int] = []

    def stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def pinned(self, size_bytes: int) -> torch.Tensor:
        self.grown.append(size_bytes)
        return torch.empty(size_bytes, dtype=torch.uint8)

    def wait(self) -> None:
        pass

    def capture(self, run: Callable[[], Outputs]) -> CapturedGraph:
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.captures += 1
        outputs = run()

        def replay() -> None:
            self.replays += 1
            for output, again in zip(outputs, run(), strict=True):
                output.copy_(again)

        return CapturedGraph(replay, outputs)


needs_cuda = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)


@pytest.fixture(params=[HostDevice, pytest.param(CudaDevice, marks=needs_cuda)])
def device(request: pytest.FixtureRequest) -> Device:
    made: Device = request.param()
    return made


def saved(folder: Path, model: torch.nn.Module, example: Mapping[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_program(export_program(model, example), folder / "model.pt2")
    return folder


def signed(*, example: bool = True) -> Signature:
    return Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 2])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 2])],
        example={"x": [[1.0, 2.0]]} if example else None,
    )


def placed(folder: Path, signature: Signature, device: Device) -> CudaScorer:
    checked = load(folder, signature=signature)
    return place_on_device((folder / "model.pt2").read_bytes(), checked, signature, device)


def alike(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    assert difference(wanted, got) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a table, with numbers that may be missing and texts."""
    path = tmp_path_factory.mktemp("model")
    table, params = examples(), FAST.model_copy(update={"epochs": 1})
    fitted = fit(prepare(table, COLUMNS, params), params)
    signature = tabular_signature(COLUMNS, table, fitted.scorer.target)
    write_artifact(path, fitted, signature=signature, columns=COLUMNS, params=params)
    return path


@pytest.fixture(scope="module")
def tabular(folder: Path) -> ScoringModel:
    return load(folder)


def rows(count: int, *, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    numeric = generator.normal(50, 50, (count, 3)).astype(np.float32)
    numeric[generator.random((count, 3)) < 0.3] = np.nan
    texts = generator.choice(np.array([b"AA", b"UA", None, "ünï".encode()], object), (count, 2))
    return {"numeric": numeric, "categorical": texts}


def test_a_tabular_program_answers_as_on_the_cpu_captured_or_not(
    folder: Path, tabular: ScoringModel, device: Device
) -> None:
    scorer = placed(folder, tabular.signature, device)
    assert scorer.pads
    for count in (1, 7, 64, 0, MAX_PADDED_ROWS + 1):
        for seed in range(REPEATS + 2):
            inputs = rows(count, seed=seed)
            got = scorer.predict(inputs)
            alike(tabular.predict(inputs), got)
            assert got["probability"].shape == (count, 1)
    assert not scorer.graphs.unsupported
    assert len(scorer.graphs) == 5  # 1, 4 by the example, 8, 64 and one that is too large to be padded


def test_the_first_layer_of_a_tabular_program_is_computed_by_one_kernel(
    folder: Path, tabular: ScoringModel, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    chosen = fused.encode_linear

    def counted(*tensors: torch.Tensor) -> torch.Tensor:
        calls.append(len(tensors[0]))
        return chosen(*tensors)

    monkeypatch.setattr(fused, "encode_linear", counted)
    scorer = placed(folder, tabular.signature, device)
    calls.clear()
    inputs = rows(7)
    alike(tabular.predict(inputs), scorer.predict(inputs))
    assert calls == [8]  # padded


def test_a_program_without_such_a_layer_is_left_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path, torch.nn.Linear(2, 2), {"input": torch.rand(4, 2)})
    program = load_program((folder / "model.pt2").read_bytes())
    assert isinstance(program, torch.fx.GraphModule)
    before = program.code
    assert fused.fuse(program) == 0
    assert program.code == before


def test_two_threads_at_once_get_their_own_answers(
    folder: Path, tabular: ScoringModel, device: Device
) -> None:
    scorer = placed(folder, tabular.signature, device)
    asked = [rows(1 + seed % 9, seed=seed) for seed in range(60)]
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(scorer.predict, asked))
    for inputs, answer in zip(asked, answers, strict=True):
        alike(tabular.predict(inputs), answer)


def test_an_answer_outlives_the_next_request(folder: Path, tabular: ScoringModel, device: Device) -> None:
    scorer = placed(folder, tabular.signature, device)
    first = scorer.predict(rows(3, seed=1))
    kept = first["probability"].copy()
    scorer.predict(rows(3, seed=2))
    np.testing.assert_array_equal(first["probability"], kept)


def test_a_program_that_makes_tensors_answers_as_on_the_cpu(tmp_path: Path, device: Device) -> None:
    signature = signed()
    scorer = placed(saved(tmp_path, TensorMaker(), {"x": torch.rand(4, 2)}), signature, device)
    inputs = {"x": np.random.default_rng(0).random((5, 2), np.float32)}
    alike(load(tmp_path, signature=signature).predict(inputs), scorer.predict(inputs))


class Centered(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


class BelowTheLargest(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.amax(0)


@pytest.mark.parametrize("model", [Centered(), BelowTheLargest()])
def test_rows_that_depend_on_each_other_are_not_padded(
    tmp_path: Path, model: torch.nn.Module, device: Device
) -> None:
    signature = signed()
    scorer = placed(saved(tmp_path, model, {"x": torch.rand(4, 2)}), signature, device)
    assert not scorer.pads
    inputs = {"x": np.array([[-1, -2], [-3, -4], [-5, -6]], np.float32)}
    for _ in range(REPEATS + 1):
        alike(load(tmp_path, signature=signature).predict(inputs), scorer.predict(inputs))


def test_rows_that_are_not_open_are_not_padded(device: Device) -> None:
    fixed = TensorSpec(name="x", datatype="FP32", shape=[3])
    signature = Signature(inputs=[fixed], outputs=[fixed.model_copy(update={"name": "y"})])
    scorer = CudaScorer(lambda x: (x + 1,), signature, device)

    class Next:
        def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            return {"y": inputs["x"] + 1}

    inputs = {"x": np.arange(3, dtype=np.float32)}
    scorer.verify(Next(), inputs, inputs)
    assert not scorer.pads
    assert len(scorer.graphs) == 1
    alike(Next().predict(inputs), scorer.predict(inputs))


def test_a_model_that_refuses_what_is_tried_is_not_padded() -> None:
    class Positive:
        def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            if (inputs["x"] < 0).any():
                raise ValueError("negative")
            return {"y": inputs["x"]}

    assert not rows_are_independent(Positive(), {"x": np.ones((1, 2), np.float32)})


def doubled(x: torch.Tensor) -> Outputs:
    return (x * 2,)


def run(graphs: GraphCache, *values: Sequence[float]) -> Any:
    with torch.inference_mode():
        return graphs.run(graphs.copy_in([torch.tensor(values)]))[0].tolist()


def test_shapes_are_captured_when_they_come_again_and_the_oldest_go() -> None:
    device = HostDevice()
    graphs = GraphCache(doubled, device, limit=2)
    for number in range(REPEATS + 2):
        assert run(graphs, [1.0 * number]) == [[2.0 * number]]
    assert (device.captures, device.replays) == (1, 3)
    for shape in ([1.0, 2.0], [1.0, 2.0, 3.0]):
        for _ in range(REPEATS):
            run(graphs, shape)
    assert (device.captures, len(graphs)) == (3, 2)
    run(graphs, [1.0, 2.0])  # the oldest but the one that went
    for _ in range(REPEATS):
        run(graphs, [5.0])
    assert (device.captures, len(graphs)) == (4, 2)
    replays = device.replays
    assert run(graphs, [3.0, 4.0]) == [[6.0, 8.0]]
    assert device.replays == replays + 1


def test_a_program_that_cannot_be_captured_runs_step_by_step_and_says_so_once(
    folder: Path, tabular: ScoringModel, caplog: pytest.LogCaptureFixture
) -> None:
    device = HostDevice(refuses="operation not permitted when stream is capturing")
    with caplog.at_level(logging.WARNING, "ray.serve"):
        scorer = placed(folder, tabular.signature, device)
        for seed in range(REPEATS + 2):
            alike(tabular.predict(rows(7, seed=seed)), scorer.predict(rows(7, seed=seed)))
    assert scorer.graphs.unsupported
    assert [line.getMessage() for line in caplog.records if line.name == "ray.serve"] == [
        "the program cannot be captured as a CUDA graph and runs step by step: " + device.refuses
    ]


def test_a_program_that_waits_for_the_device_runs_step_by_step(device: Device) -> None:
    def picks(x: torch.Tensor) -> Outputs:
        return (x + x[x > 0].sum() * 0,)  # how many numbers it keeps is not known before

    scorer = CudaScorer(picks, signed(), device)
    inputs = {"x": np.ones((3, 2), np.float32)}
    for _ in range(REPEATS + 1):
        np.testing.assert_array_equal(scorer.predict(inputs)["y"], inputs["x"])
    assert scorer.graphs.unsupported == isinstance(device, CudaDevice)


def test_a_buffer_grows_by_powers_of_two_and_shows_nobody_elses_rows() -> None:
    device = HostDevice()
    staging = StagingBuffer(device)
    assert staging.filled(np.full((3, 2), 7, np.float32), None).tolist() == [[7, 7]] * 3
    assert staging.filled(np.ones((1, 2), np.float32), 4).tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]
    assert staging.filled(np.array(True), None).tolist() is True
    staging.filled(np.ones((5, 1), np.int64), 8)
    assert device.grown == [32, 64]


def test_a_program_that_answers_differently_is_unfit_and_the_error_says_by_how_much(tmp_path: Path) -> None:
    signature = signed()
    folder = saved(tmp_path, TensorMaker(), {"x": torch.rand(4, 2)})
    checked = load(folder, signature=signature)
    scorer = CudaScorer(lambda x: (x,), signature, HostDevice())
    example = {"x": np.array([[1, 2]], np.float32)}
    with pytest.raises(UnfitForDevice, match=r"output 'y' differs by \d"):
        scorer.verify(checked, example, example)
    with pytest.raises(UnfitForDevice, match="no example to compare by"):
        placed(folder, signed(example=False), HostDevice())


@pytest.mark.parametrize(
    ("wanted", "got", "says"),
    [
        ([1.0, np.nan, np.inf], [1.00005, np.nan, np.inf], None),
        ([1.0, 2.0], [1.0, 2.5], "output 'y' differs by 0.5"),
        ([1.0, np.nan], [1.0, 2.0], "output 'y' differs by 0"),
        ([np.inf], [-np.inf], "output 'y' differs by 0"),
    ],
)
def test_floats_may_differ_by_their_tolerance(wanted: Any, got: Any, says: str | None) -> None:
    assert difference({"y": np.array(wanted, np.float32)}, {"y": np.array(got, np.float32)}) == says


def test_integers_and_shapes_may_not_differ() -> None:
    ones = np.ones(3, np.int64)
    assert difference({"y": ones}, {"y": ones * [1, 1, 2]}) == "output 'y' differs in 1 of 3 values"
    assert difference({"y": ones}, {"y": ones[:2]}) == "output 'y' is int64 (2,), not int64 (3,)"


def test_a_request_without_room_fails_and_the_next_is_answered() -> None:
    def hungry(x: torch.Tensor) -> Outputs:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (x,)

    scorer = CudaScorer(hungry, signed(), HostDevice())
    with pytest.raises(
        DeviceOutOfMemory, match="no room on the CUDA device for this request; send fewer rows"
    ) as caught:
        scorer.predict({"x": np.ones((3, 2), np.float32)})
    assert caught.value.status == 503
    assert scorer.predict({"x": np.ones((2, 2), np.float32)})["y"].tolist() == [[1, 1], [1, 1]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_without_room_answers_the_next() -> None:
    def wide(x: torch.Tensor) -> Outputs:
        return (x + x.new_zeros(len(x), 1 << 30).amax(1, keepdim=True),)  # 4 GiB a row

    scorer = CudaScorer(wide, signed(), CudaDevice())
    for _ in range(2):
        with pytest.raises(DeviceOutOfMemory):
            scorer.predict({"x": np.ones((500, 2), np.float32)})
        assert scorer.predict({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[1, 1]]


class Faulty(HostDevice):
    """Fails with the first wait."""

    def wait(self) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")


def test_a_device_that_fails_for_good_is_told_from_a_run_that_does() -> None:
    def refused(_: torch.Tensor) -> Outputs:
        raise torch.AcceleratorError("CUDA error: invalid configuration argument")

    ones = {"x": np.ones((1, 2), np.float32)}
    with pytest.raises(DeviceFailed, match="the CUDA device failed; its replica is replaced"):
        CudaScorer(lambda x: (x,), signed(), Faulty()).predict(ones)
    with pytest.raises(torch.AcceleratorError, match="invalid configuration"):
        CudaScorer(refused, signed(), HostDevice()).predict(ones)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_want_of_memory_is_told_from_other_errors(error: RuntimeError, full: bool) -> None:  # noqa: FBT001 - a case
    assert is_out_of_memory(error) is full


def test_pinned_memory_may_run_out_too() -> None:
    error = torch.AcceleratorError("CUDA error: out of memory")
    error.error_code = 2
    assert is_out_of_memory(error)


def record(signature: Signature) -> ModelVersion:
    return ModelVersion.model_construct(model="late", version=3, signature=signature, tags={}, files={})


def device_is_there(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(scoring, "CudaDevice", lambda: device)


def test_a_program_goes_to_the_device_only_where_one_was_reserved(
    folder: Path, tabular: ScoringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_is_there(monkeypatch, HostDevice())
    assert isinstance(load_scorer(folder, tabular.signature), DirectScorer)
    assert isinstance(load_scorer(folder, tabular.signature, device="cuda"), CudaScorer)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_where_torch_finds_no_device_the_cpu_answers_and_the_log_says_so(
    folder: Path, tabular: ScoringModel, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(load_scorer(folder, tabular.signature, device="cuda"), DirectScorer)
    assert "a CUDA device was reserved, but torch" in caplog.text


def test_a_program_that_cannot_run_there_runs_on_the_cpu_and_the_log_says_so(
    folder: Path, tabular: ScoringModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class MetaDevice(HostDevice):
        torch_device = torch.device("meta")

    device_is_there(monkeypatch, MetaDevice())
    assert isinstance(load_scorer(folder, tabular.signature, device="cuda"), DirectScorer)
    assert "the program runs on the CPU, not on the CUDA device that was reserved: " in caplog.text


def test_a_device_without_room_for_a_version_does_not_load_it(
    folder: Path, tabular: ScoringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(HostDevice):
        def stream(self) -> AbstractContextManager[object]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    device_is_there(monkeypatch, Full())
    loader = partial(load_scorer, device="cuda")
    with pytest.raises(LoadError, match="late@3 cannot be served: CUDA out of memory"):
        load_version(record(tabular.signature), folder, loader)


def test_a_versions_replica_is_told_whether_it_has_a_device() -> None:
    def options(**own: Any) -> PredictorOptions:
        return PredictorOptions(store_url="file:///tmp/nowhere", dedicated=DedicatedOptions(**own))

    assert device_of(options(num_gpus=0.5)) == "cuda"
    assert device_of(options()) == "cpu"
    assert device_of(PredictorOptions(store_url="file:///tmp/nowhere")) == "cpu"


async def test_a_replica_whose_device_failed_is_not_healthy(
    folder: Path, tabular: ScoringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = load_version(record(tabular.signature), folder, load_scorer)
    monkeypatch.setattr(dedicated, "configure_process", lambda _: None)
    monkeypatch.setattr(dedicated, "freeze", lambda: None)
    monkeypatch.setattr(dedicated, "_load", lambda *_: version)
    replica = VersionReplica("late", 3, {"store_url": "file:///tmp/nowhere"})
    replica.check_health()
    assert not isinstance(await replica(rows(1), []), str)

    def fails(*_: Any) -> Any:
        raise DeviceFailed("the CUDA device failed")

    monkeypatch.setattr(version, "predict", fails)
    with pytest.raises(DeviceFailed):
        await replica(rows(1), [])
    with pytest.raises(DeviceFailed, match="the CUDA device failed"):
        replica.check_health()


async def test_the_endpoint_passes_on_a_replicas_message_without_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Handle:
        async def remote(self, *_: Any) -> Any:
            error = RayTaskError(
                "f", "Traceback ...", DeviceOutOfMemory("no room"), proctitle="p", pid=1, ip="::1"
            )
            raise error.as_instanceof_cause()

    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(replica_tag="endpoint"))
    monkeypatch.setattr(serve, "get_deployment_handle", lambda *_, **__: Handle())
    options = PredictorOptions(store_url="file:///tmp/nowhere", dedicated=DedicatedOptions())
    assert options.dedicated is not None
    deployments = ServeDeployments("late", options, options.dedicated, release=1)
    with pytest.raises(DeviceOutOfMemory) as caught:
        await deployments.connect(3)({}, [])
    assert str(caught.value) == "no room"


def test_the_copies_to_a_device_and_back_are_timed(
    folder: Path, tabular: ScoringModel, device: Device
) -> None:
    scorer = placed(folder, tabular.signature, device)
    stages = breakdown.device_stages(scorer, rows(7), rounds=3)
    assert [*stages] == ["device: copy in", "device: compute", "device: copy out", "device: all in one"]
    assert all(median > 0 for median in stages.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--device cuda: torch .* finds no CUDA device here"):
        breakdown.measure_sized(tmp_path / "artifact", 1_000, 20, 1, "cuda")


def test_a_model_of_a_size_is_measured_on_the_cpu(tmp_path: Path) -> None:
    assert [breakdown.number(text) for text in ("2000", "10k", "100M", "1.5G")] == [2e3, 1e4, 1e8, 1.5e9]
    stages = breakdown.measure_sized(tmp_path / "artifact", 10_000, 20, 3, "cpu")
    assert [*stages] == ["parse", "model on the CPU", "encode"]
