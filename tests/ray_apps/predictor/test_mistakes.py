"""What a caller got wrong counts against no version, by either door; what a version refuses that others answer does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from copy import deepcopy
from typing import Any

import grpc
import orjson
import pytest
from tritonclient.grpc import service_pb2

from tests.ports import free_port
from tests.ray_apps.admissions import patient_admission
from tests.ray_apps.predictor.conftest import SIGNATURE, ServedModel, tensors
from toque.functions.live_counts import ArmTally, SplitArm, Tally
from toque.functions.prediction_log.writing.columns import prediction_columns
from toque.ray_apps.predictor.deploy.standalone import EndpointRouter
from toque.ray_apps.predictor.grpc import GrpcServer, Limits
from toque.ray_apps.predictor.http.auth import TokenAuthenticator
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference.live import ModelSeries
from toque.registry import Access, Registry, Signature, TensorSpec

MOST_BYTES = 1 << 20
UNITS = [f"u{number}" for number in range(12)]  # of which some are the canary's

Send = Callable[[Any], Any]


def _with(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    body = tensors()
    change(body)
    return body


MISTAKES: dict[str, Any] = {
    "no request": b"{",
    "unknown input": _with(
        lambda b: b["inputs"].append({"name": "speed", "datatype": "FP32", "shape": [1, 1], "data": [1.0]})
    ),
    "missing input": _with(lambda b: b["inputs"].pop()),
    "wrong shape": _with(lambda b: b["inputs"][0].update(shape=[1, 3], data=[1.0, 2.0, 3.0])),
    "other rows": _with(lambda b: b["inputs"][1].update(shape=[2, 1], data=["UA", "DL"])),
    "wrong type": _with(lambda b: b["inputs"][0].update(datatype="FP64")),
    "unknown type": _with(lambda b: b["inputs"][0].update(datatype="FP31")),
    "data of another length": _with(lambda b: b["inputs"][0].update(data=[1.0])),
    "unknown output": _with(lambda b: b.update(outputs=[{"name": "odds"}])),
    "parameter of a wrong type": _with(lambda b: b.update(parameters={"load_test": "yes"})),
    "too large": tensors(120_000),
    "unknown name": {"parameters": {"request": [{"distanc": 1.0}]}},
    "text for a number": {"parameters": {"request": [{"distance": "far", "wind": 1.0, "carrier": "UA"}]}},
    "tensors and names": {**tensors(), "parameters": {"request": [{"distance": 1.0}]}},
    "entities without a service": {"parameters": {"entities": [{"carrier": "UA"}]}},
    "no explanation": {**tensors(), "parameters": {"explain": {"samples": 1}}},
}


@pytest.fixture
def tally() -> Tally:
    return Tally(lambda: 100.0)


@pytest.fixture
async def served(make_served_model: Callable[..., ServedModel], tally: Tally) -> AsyncIterator[ServedModel]:
    made = make_served_model(tally=tally, series=ModelSeries("late", "default"))
    made.registry.promote("late", made.version())
    made.registry.set_traffic("late", {"canary": (made.version(), 0.5)})
    made.refresh()
    yield made
    await made.predictor.close()
    await made.client.aclose()


@pytest.fixture(params=["HTTP", "gRPC"])
async def send(request: pytest.FixtureRequest, served: ServedModel) -> AsyncIterator[Send]:
    """Sends a request by a door; returns whether it was the caller's mistake, as the door says."""
    if request.param == "HTTP":

        async def post(body: Any) -> bool:
            content = body if isinstance(body, bytes) else orjson.dumps(body)
            return (await served.client.post("/infer", content=content)).status_code in {400, 413}

        yield post
        return
    auth = TokenAuthenticator(patient_admission(Access(served.registry.store, actor="predictor")))
    endpoint = ModelEndpoint(served.predictor, auth, max_body_bytes=MOST_BYTES)
    address = f"127.0.0.1:{free_port()}"
    server = GrpcServer(
        EndpointRouter({"late": endpoint}, auth), auth, address, Limits(max_message_bytes=MOST_BYTES)
    )
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def call(body: Any) -> bool:
            message = b"\xff\xff" if isinstance(body, bytes) else _message(body).SerializeToString()
            try:
                await method(message, metadata=[("authorization", f"Bearer {served.tokens['predictor']}")])
            except grpc.aio.AioRpcError as error:
                return error.code() in {
                    grpc.StatusCode.INVALID_ARGUMENT,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                }
            return False

        yield call
    await server.stop(1)


def _message(body: dict[str, Any]) -> Any:
    """Make the message of a request in JSON."""
    message = service_pb2.ModelInferRequest(model_name="late")
    for each in body.get("inputs", ()):
        tensor = message.inputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
        if each["datatype"] == "BYTES":
            tensor.contents.bytes_contents.extend(text.encode() for text in each["data"])
        elif each["datatype"] == "FP64":
            tensor.contents.fp64_contents.extend(each["data"])
        else:
            tensor.contents.fp32_contents.extend(each["data"])
    for each in body.get("outputs", ()):
        message.outputs.add(name=each["name"])
    for name, value in body.get("parameters", {}).items():
        message.parameters[name].string_param = (
            value if isinstance(value, str) else orjson.dumps(value).decode()
        )
    return message


def rows(served: ServedModel) -> list[dict[str, Any]]:
    served.predictor.recorder.flush()
    return prediction_columns(served.log.payloads)["late"].to_pylist() if served.log.payloads else []


def counted(tally: Tally) -> dict[SplitArm, ArmTally]:
    return next(iter(tally.take().values()), {})


def of_unit(body: Any, unit: str) -> Any:
    if isinstance(body, bytes):
        return body
    return {**deepcopy(body), "parameters": {"unit": unit, **body.get("parameters", {})}}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_counts_against_no_version(
    served: ServedModel, tally: Tally, send: Send, mistake: str
) -> None:
    assert [await send(of_unit(MISTAKES[mistake], unit)) for unit in UNITS] == [True] * len(UNITS)
    assert rows(served) == []
    assert counted(tally) == {}
    assert not await send(of_unit(tensors(), "u0"))
    assert len(rows(served)) == 1


async def test_values_that_no_version_takes_are_a_mistake_and_those_that_one_refuses_are_its_failures(
    served: ServedModel, tally: Tally
) -> None:
    champion, canary = (_scorer(served, number) for number in (1, 2))
    champion.fail = canary.fail = "values"
    for unit in UNITS:
        assert (await served.infer(tensors(parameters={"unit": unit}))).status_code == 400
    assert (rows(served), counted(tally)) == ([], {})
    champion.fail = ""
    refused = [
        unit for unit in UNITS if (await served.infer(tensors(parameters={"unit": unit}))).status_code == 400
    ]
    assert 0 < len(refused) < len(UNITS)
    failed = [row for row in rows(served) if row["outputs"] is None]
    assert [(row["version"], row["arm"], row["unit"]) for row in failed] == [
        (2, "canary", unit) for unit in refused
    ]
    by_version = {arm.version: tally for arm, tally in counted(tally).items()}
    assert by_version[2].refused.requests == by_version[2].requests == len(refused)
    assert by_version[1].refused.requests == 0


NARROW = Signature(
    inputs=[TensorSpec(name="numeric", datatype="FP32", shape=[-1, 3], columns=["distance", "wind", "rain"])],
    outputs=SIGNATURE.outputs,
    example={"numeric": [[1.0, 2.0, 3.0]]},
)


@pytest.mark.parametrize("takes", ["a share", "all"])
async def test_a_version_with_another_signature_fails_what_the_one_before_answered(
    served: ServedModel, tally: Tally, takes: str
) -> None:
    other = _other_version(served.registry, served)
    if takes == "all":
        served.registry.promote("late", other)
    else:
        served.registry.set_traffic("late", {"canary": (other, 0.5)})
    served.refresh()
    statuses = {unit: (await served.infer(tensors(parameters={"unit": unit}))).status_code for unit in UNITS}
    refused = [unit for unit, status in statuses.items() if status == 400]
    assert len(refused) == len(UNITS) if takes == "all" else 0 < len(refused) < len(UNITS)
    assert [row["unit"] for row in rows(served) if row["version"] == other] == refused
    live = {arm.version: tally for arm, tally in counted(tally).items()}
    assert live[other].refused.requests == len(refused)
    mistaken = tensors(parameters={"unit": refused[0]})
    mistaken["inputs"][0]["datatype"] = "FP64"
    before = len(served.log.payloads)
    assert (await served.infer(mistaken)).status_code == 400
    served.predictor.recorder.flush()
    assert len(served.log.payloads) == before


async def test_mistakes_are_seen_in_the_series(served: ServedModel) -> None:
    assert served.predictor.series is not None
    assert (await served.infer(MISTAKES["wrong type"])).status_code == 400
    errors = [
        served.predictor.series.of(number, arm).errors for number, arm in ((1, "champion"), (2, "canary"))
    ]
    assert sum(each[400] for each in errors) == 1


def _scorer(served: ServedModel, number: int) -> Any:
    loaded: Any = served.engine.find(number)
    return loaded._scorer


def _other_version(registry: Registry, served: ServedModel) -> int:
    path = served.folder / "other"
    path.mkdir()
    (path / "model.json").write_text('{"value": 0.5}')
    return registry.create_version("late", path=path, signature=NARROW).version
