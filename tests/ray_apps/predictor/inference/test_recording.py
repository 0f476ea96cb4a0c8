"""Log records of answers that are float32 matrices, as most are, and how they are written in batches."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from tests.ports import free_port
from tests.ray_apps.predictor.conftest import MemoryLog
from tests.ray_apps.predictor.test_write_coalescing_served import served
from toque.functions.prediction_log import PredictionLogError, Pseudonyms, pseudonym
from toque.functions.prediction_log.frames import read_frames
from toque.functions.prediction_log.records import decode_prediction
from toque.functions.prediction_log.writing.columns import prediction_columns
from toque.functions.prediction_log.writing.wal import WriteAheadLog, segments_of
from toque.ray_apps.predictor.deploy.standalone import EndpointRouter
from toque.ray_apps.predictor.grpc import GrpcServer
from toque.ray_apps.predictor.http.auth import NoAuthentication
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.inference.recording import Failure, Recorder
from toque.ray_apps.predictor.protocol.json import InferRequest
from toque.ray_apps.predictor.versions.engine import Engine
from toque.ray_apps.predictor.write_coalescing import WRITE_BATCH, WriteBatch, current_batch
from toque.registry import Registry, Signature, TensorSpec, open_store

Answers = Callable[[Mapping[str, Any]], dict[str, np.ndarray]]
X = np.array([[1, 2], [3, 4], [5, np.nan]], np.float32)


def plain_predictor(tmp_path: Path, answers: Answers, log: MemoryLog, *, rows: int = -1) -> Predictor:
    """A predictor of one model that answers so."""

    class Scorer:
        def predict(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
            return answers(inputs)

    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[rows, 2])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[rows, 1])],
    )
    registry = Registry(open_store(f"file://{tmp_path}/store"), actor="ada")
    registry.create_model("late")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "model.json").write_text("{}")
    version = registry.create_version("late", path=tmp_path / "artifact", signature=signature)
    registry.promote("late", version.version)
    engine = Engine("late", registry, lambda *_: Scorer(), scratch=tmp_path / "loading")
    engine.follow_once()
    engine.load_wanted()
    return Predictor(engine, Recorder("late", log))


async def logged(
    tmp_path: Path, answers: Answers, *, rows: int = -1, **parameters: Any
) -> list[dict[str, Any]]:
    """The rows in the table after one request with three rows."""
    log = MemoryLog()
    predictor = plain_predictor(tmp_path, answers, log, rows=rows)
    await predictor.infer(InferRequest(id="r", inputs={"x": X}, parameters=parameters))
    await predictor.close()
    return prediction_columns(log.payloads)["late"].to_pylist()


async def test_each_row_is_logged_with_its_vector_and_its_answer(tmp_path: Path):
    found = await logged(tmp_path, lambda inputs: {"y": inputs["x"][:, :1] * 10}, unit="N1")
    assert [(row["prediction_id"], row["unit"], row["numeric"][0], row["outputs"]) for row in found] == [
        ("r:0", "N1", 1.0, [10.0]), ("r:1", "N1", 3.0, [30.0]), ("r:2", "N1", 5.0, [50.0]),
    ]  # fmt: skip
    assert np.isnan(found[2]["numeric"][1])


@pytest.mark.parametrize(
    "answers",
    [
        lambda inputs: {"y": inputs["x"][:1, :1]},
        lambda inputs: {"y": inputs["x"][:1, 0]},
        lambda _: {"y": np.float32(1.0).reshape(())},
    ],
    ids=["too few rows", "a vector of too few", "a scalar"],
)
async def test_answers_that_are_not_what_was_signed_are_left_out(tmp_path: Path, answers: Answers):
    found = await logged(tmp_path, answers)
    assert [(row["numeric"][0], row["outputs"]) for row in found] == [(1.0, None), (3.0, None), (5.0, None)]


async def test_a_float64_answer_is_logged_as_float32(tmp_path: Path):
    found = await logged(tmp_path, lambda inputs: {"y": inputs["x"][:, :1].astype(np.float64)})
    assert [row["outputs"] for row in found] == [[1.0], [3.0], [5.0]]


async def test_a_model_of_a_fixed_number_of_rows_has_one_record_without_vectors(tmp_path: Path):
    (found,) = await logged(tmp_path, lambda inputs: {"y": inputs["x"][:, :1]}, rows=3)
    assert (found["prediction_id"], found["numeric"], found["outputs"]) == ("r", None, None)


def test_an_arm_by_the_name_of_the_shadows_is_told_from_them():
    log = MemoryLog()
    recorder = Recorder("m", log)
    numbers = {"x": np.ones((1, 2), np.float32)}
    for shadow in (True, False, True):
        recorder.record(
            id="a", version=1, arm="shadow", shadow=shadow, unit=None, at_us=0, latency_ms=1.0, rows=1,
            inputs=numbers, outputs=numbers, float32_matrix=True,
        )  # fmt: skip
    assert [decode_prediction(payload)["shadow"] for payload in log.payloads] == [True, False, True]


KEY = "k" * 16


async def test_units_and_entities_can_stand_in_the_log_as_pseudonyms():
    log = MemoryLog()
    recorder = Recorder("m", log, pseudonyms=Pseudonyms(KEY, frozenset({"unit", "entities"})))
    numbers = {"x": np.ones((1, 2), np.float32)}
    for unit in ("anna", "anna", None):
        recorder.record(
            id="a", version=1, arm="champion", shadow=False, unit=unit, at_us=0, latency_ms=1.0, rows=1,
            inputs=numbers, outputs=numbers, entities=[{"rider": "anna", "seat": 4, "line": None}],
        )  # fmt: skip
    recorder.fail(Failure("b", 1, "champion", shadow=False, unit="anna", at_us=0, latency_ms=1.0))
    recorder.flush()
    found = [decode_prediction(payload) for payload in log.payloads]
    anna = hmac.new(KEY.encode(), b"anna", "sha256").hexdigest()[:32]
    assert [each["unit"] for each in found] == [anna, anna, None, anna]
    assert found[0]["entities"] == [{"rider": anna, "seat": pseudonym("4", KEY), "line": None}]
    assert all(b"anna" not in payload for payload in log.payloads)


def test_only_the_named_fields_carry_pseudonyms_and_a_short_key_is_refused():
    units = Pseudonyms(KEY, frozenset({"unit"}))
    assert units.entities([{"rider": "anna"}]) == [{"rider": "anna"}]
    with pytest.raises(PredictionLogError, match="at least 16"):
        Pseudonyms("short", frozenset({"unit"}))


Ask = Callable[[int], Awaitable[str]]


@contextlib.asynccontextmanager
async def by_http(app: EndpointRouter) -> AsyncIterator[Ask]:
    async with served(app) as (_, port), httpx.AsyncClient() as client:

        async def ask(number: int) -> str:
            tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number, 0]}
            url = f"http://127.0.0.1:{port}/v2/models/late/infer"
            return str((await client.post(url, json={"inputs": [tensor]})).json()["id"])

        yield ask


@contextlib.asynccontextmanager
async def by_grpc(app: EndpointRouter) -> AsyncIterator[Ask]:
    address = f"127.0.0.1:{free_port()}"
    server = GrpcServer(app, NoAuthentication(), address)
    await server.start()
    async with InferenceServerClient(address) as client:

        async def ask(number: int) -> str:
            tensor = InferInput("x", [1, 2], "FP32")
            tensor.set_data_from_numpy(np.array([[number, 0]], np.float32))
            return str((await client.infer("late", [tensor])).get_response().id)

        yield ask
    await server.stop(1)


@pytest.mark.parametrize(("endpoint", "together"), [(by_http, True), (by_grpc, False)])
async def test_an_answer_that_came_is_in_the_log(tmp_path: Path, endpoint: Any, *, together: bool):
    """Of many callers at once, whose records are written together over HTTP, and one by one by gRPC."""

    class LargestWriteLog(MemoryLog):
        most = 0

        def extend(self, payloads: Sequence[bytes]) -> int:
            self.most = max(self.most, len(payloads))
            return super().extend(payloads)

    log, seen = LargestWriteLog(), list[str]()
    predictor = plain_predictor(tmp_path, lambda inputs: {"y": inputs["x"][:, :1]}, log)

    async def call(ask: Ask) -> None:
        for number in range(20):
            seen.append(await ask(number))
            assert seen[-1] in ids(log)

    async with (
        asyncio.timeout(60),
        endpoint(
            EndpointRouter({"late": ModelEndpoint(predictor, NoAuthentication())}, NoAuthentication())
        ) as ask,
    ):
        await asyncio.gather(*(call(ask) for _ in range(16)))
    await predictor.close()
    assert sorted(seen) == sorted(ids(log))
    assert len(set(seen)) == 320
    assert (log.most > 1) == together


async def test_an_answer_that_leaves_by_another_loop_is_in_the_log_before(tmp_path: Path):
    """Serve may run the application on a loop of its own, beside that of the connections."""
    log, here = MemoryLog(), current_batch()
    predictor = plain_predictor(tmp_path, lambda inputs: {"y": inputs["x"][:, :1]}, log)
    endpoint = ModelEndpoint(predictor, NoAuthentication())

    async def ask() -> httpx.Response:
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(from_the_connection)) as client:
            return await client.post("http://replica/infer", json=body)

    async def from_the_connection(scope: Any, receive: Any, send: Any) -> None:
        await endpoint({**scope, "state": {WRITE_BATCH: here}}, receive, send)

    answer = await asyncio.to_thread(lambda: asyncio.run(ask()))
    assert [answer.json()["id"]] == ids(log)
    there = await ask()
    assert ids(log) == [answer.json()["id"]]
    here.write_records()
    assert ids(log) == [answer.json()["id"], there.json()["id"]]
    await predictor.close()


async def test_records_of_a_batch_are_written_together():
    log, now = MemoryLog(), current_batch()
    recorder = Recorder("m", log)
    for name in "abc":
        record(recorder, name, now)
    record(recorder, "at once")
    assert ids(log) == ["at once"]
    now.write_records()
    assert ids(log) == ["at once", "a", "b", "c"]
    now.write_records()
    assert (len(log.payloads), recorder.written) == (4, 4)


async def test_a_record_holds_the_outputs_as_they_were_answered():
    """A model may use one array for all its answers."""
    log, now, answers = MemoryLog(), current_batch(), np.zeros((1, 1), np.float32)
    recorder = Recorder("m", log)
    for number in (1.0, 2.0):
        answers[:] = number
        record(recorder, "a", now, answers)
    now.write_records()
    assert [np.frombuffer(decode_prediction(payload)["outputs"], "f4")[0] for payload in log.payloads] == [
        1,
        2,
    ]


async def test_a_log_with_room_for_some_takes_those(tmp_path: Path):
    log, now = WriteAheadLog(tmp_path, limit_bytes=1_000, segment_bytes=500), current_batch()
    recorder = Recorder("m", log)
    for number in range(40):
        record(recorder, str(number), now)
    now.write_records()
    kept = [frame.payload for _, path in segments_of(log.folder) for frame in read_frames(path.read_bytes())]
    assert [decode_prediction(payload)["id"] for payload in kept] == [str(n) for n in range(len(kept))]
    assert 0 < len(kept) < 40
    assert (recorder.written, recorder.dropped) == (len(kept), 40 - len(kept))
    log.close()


async def test_a_broken_log_costs_records_and_nobody_elses(caplog: pytest.LogCaptureFixture):
    class Broken(MemoryLog):
        def extend(self, payloads: Sequence[bytes]) -> int:
            raise ValueError(f"this log is closed, and takes none of {len(payloads)}")

    log, now = MemoryLog(), current_batch()
    broken, other = Recorder("broken", Broken()), Recorder("other", log)
    for recorder in (broken, other):
        record(recorder, "a", now)
        record(recorder, "b", now)
    now.write_records()
    assert (broken.written, broken.dropped, ids(log)) == (0, 2, ["a", "b"])
    assert "prediction log of broken: 2 records are lost" in caplog.text


async def test_an_answer_that_leaves_alone_is_refused_by_a_broken_log():
    class Broken(MemoryLog):
        def append(self, payload: bytes) -> int:
            raise ValueError(f"this log is closed, and takes none of {len(payload)} bytes")

    with pytest.raises(ValueError, match="this log is closed"):
        record(Recorder("m", Broken()), "a")


def record(
    recorder: Recorder, name: str, write_batch: WriteBatch | None = None, answers: Any = X[:1, :1]
) -> int | None:
    return recorder.record(
        id=name, version=1, arm="champion", shadow=False, unit=None, at_us=0, latency_ms=1.0, rows=1,
        inputs={"x": X[:1]}, outputs={"y": answers}, float32_matrix=True, write_batch=write_batch,
    )  # fmt: skip


def ids(log: MemoryLog) -> list[str]:
    return [decode_prediction(payload)["id"] for payload in log.payloads]
