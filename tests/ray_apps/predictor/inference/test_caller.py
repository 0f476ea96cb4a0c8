"""Callers who disconnect, over real connections: work that has not begun is dropped, and its capacity is free."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import uvicorn

from tests.ray_apps.predictor.conftest import ServedModel, tensors
from toque.functions.prediction_log.records import decode_prediction

WITHIN_S = 20


@pytest.fixture
async def port(served_model: ServedModel) -> AsyncIterator[int]:
    """The port on which the served model's endpoint listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app: Any = served_model.client._transport.app  # type: ignore[attr-defined]
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await until(lambda: server.started)
        yield listening.getsockname()[1]
        server.should_exit = True
        await serving


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not happened():  # noqa: ASYNC110 - what it looks at sets no event
            await asyncio.sleep(0.01)


async def asked(served_model: ServedModel, port: int, body: dict[str, Any]) -> asyncio.StreamWriter:
    """A connection on which a request has been sent."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    token = f"authorization: Bearer {served_model.tokens['predictor']}\r\n"
    writer.write(f"POST /infer HTTP/1.1\r\nhost: x\r\n{token}content-length: {len(content)}\r\n\r\n".encode())
    writer.write(content)
    await writer.drain()
    return writer


@pytest.mark.parametrize("tags", [{}, {"max_batch_rows": "2"}], ids=["alone", "in batches"])
async def test_work_for_a_caller_who_has_gone_is_dropped(
    served_model: ServedModel, port: int, tags: dict[str, str]
):
    served_model.registry.promote("late", served_model.version(tags=tags))
    served_model.refresh()
    endpoint: Any = served_model.client._transport.app  # type: ignore[attr-defined]
    given: list[int] = []
    release = threading.Event()

    def predict(inputs: Any) -> Any:
        given.append(len(inputs["numeric"]))
        release.wait(WITHIN_S)
        return {"probability": np.zeros((len(inputs["numeric"]), 1), np.float32)}

    version: Any = served_model.engine.routes.champion
    version._scorer.predict, version.example_ms = (
        predict,
        100.0,
    )  # it answers in a thread, of which there are two
    at_once = 1 if tags else 2
    try:
        busy = [await asked(served_model, port, tensors(1, id="busy")) for _ in range(at_once)]
        await until(lambda: len(given) == at_once)
        waits, goes = [await asked(served_model, port, tensors(rows, id=f"{rows}")) for rows in (2, 3)]
        await until(lambda: endpoint.in_flight == at_once + 2)
        goes.close()
        busy[0].close()  # what is under way goes on, but nobody waits for it
        await until(lambda: endpoint.in_flight == at_once)
    finally:
        release.set()
    await until(lambda: endpoint.in_flight == 0)
    assert given == [1] * at_once + [2]
    await until(
        lambda: len(served_model.log.payloads) == at_once + 2
    )  # both who went are in the log, as not answered
    logged = sorted(
        (each["id"], each["outputs"] is None) for each in map(decode_prediction, served_model.log.payloads)
    )
    answered = [("busy", False)] * (at_once - 1)
    assert logged == sorted([("2", False), ("3", True), *answered, ("busy", True)])
    for writer in (waits, *busy[1:]):
        writer.close()


async def test_a_caller_that_stays_connected_is_answered(served_model: ServedModel, port: int):
    version: Any = served_model.engine.routes.champion
    version.example_ms = 100.0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(tensors(2)).encode()
    token = f"authorization: Bearer {served_model.tokens['predictor']}\r\n"
    for _ in range(3):  # on one connection
        writer.write(
            f"POST /infer HTTP/1.1\r\nhost: x\r\n{token}content-length: {len(content)}\r\n\r\n".encode()
        )
        writer.write(content)
        async with asyncio.timeout(WITHIN_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            headers = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in headers.split(b"\r\n") if line.startswith(b"content-length"))
            assert (
                len(json.loads(await reader.readexactly(int(length.split(b":")[1])))["outputs"][0]["data"])
                == 2
            )
    writer.close()
