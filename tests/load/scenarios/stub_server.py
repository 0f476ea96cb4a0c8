"""Inference server on sockets that takes one request at a time, each so long."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Self

METADATA = {"name": "toy", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}
ANSWER = {"outputs": [{"name": "y", "shape": [1, 1], "data": [0.5]}]}


class StubServer:
    def __init__(self, *, taking_s: float) -> None:
        self._taking_s = taking_s
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(60)

    async def _serve(self) -> None:
        self._end, self._turn = asyncio.Event(), asyncio.Lock()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._end.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                sizes = [
                    int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"Content-Length" in line
                ]
                if sizes:
                    await reader.readexactly(sizes[0])
                    async with self._turn:
                        await asyncio.sleep(self._taking_s)
                body = json.dumps(ANSWER if sizes else METADATA).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
