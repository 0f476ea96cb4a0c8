"""Coalescing of the socket writes and log records of responses that are ready at about the same time.

Each write to a connection may wake its client in the midst of the next response. While other requests are being
answered, writes wait until the event loop has run all that is ready, or two milliseconds; a response that takes long
itself is never delayed. For small models that is a third more requests a second. The log records of a batch of
responses are written together too, before any of them leaves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, cast
from weakref import WeakKeyDictionary, ref

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["WRITE_BATCH", "CoalescedTransport", "CoalescingProtocol", "WriteBatch", "current_batch"]

WRITE_BATCH: Final = "toque.write_batch"
"""Key of the write batch in the ASGI state of a request."""

MAX_GAP_S: Final = 5e-4
"""Longest time between two responses for which the second is worth waiting for."""
MAX_DELAY_S: Final = 2e-3
MAX_BUFFERED_BYTES: Final = 64 << 10
"""Of one connection; beyond it sending costs more than waking, and the writer must feel a client that does not read."""


class RecordWriter(Protocol):
    """Writer of records that must be stored before the responses of a batch leave."""

    def write_pending(self, records: list[Any], /) -> None:
        """Write all pending records; never raises, since other callers' responses wait for it."""
        ...


class WriteBatch:
    """Responses that wait to be sent on the connections of one event loop, and their pending records."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)
        self._records: dict[RecordWriter, list[Any]] = {}
        self._waiting: list[CoalescedTransport] = []
        self._waiting_since = 0.0
        self._last_response = 0.0

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # ASGI state that is sent to another process has no batch there

    def is_of_running_loop(self) -> bool:
        """Whether the batch belongs to the event loop that runs now."""
        return self._loop() is asyncio.get_running_loop()

    def pending_of(self, writer: RecordWriter) -> list[Any]:
        """The list of records that `writer` writes before the next response leaves; append to it."""
        pending = self._records.get(writer)
        if pending is None:
            pending = self._records[writer] = []
        return pending

    def response_complete(self) -> None:
        """Note that a whole response was written just now."""
        self._last_response = time.monotonic()

    def defer(self, connection: CoalescedTransport) -> bool:
        """Whether a write waits for the next flush: yes if the response before it was written just now.

        Otherwise all that waited is flushed first.
        """
        now = time.monotonic()
        if now - self._last_response > MAX_GAP_S:
            self.flush()
            return False
        if not self._waiting:
            self._waiting_since = now
            asyncio.get_running_loop().call_soon(self.flush)
        self._waiting.append(connection)
        return True

    def is_overdue(self) -> bool:
        """Whether the first of the waiting writes has waited for as long as it may."""
        return time.monotonic() - self._waiting_since > MAX_DELAY_S

    def write_records(self) -> None:
        """Have all pending records written."""
        if self._records:
            records, self._records = self._records, {}
            for writer, pending in records.items():
                writer.write_pending(pending)

    def flush(self) -> None:
        """Send all waiting writes, connection by connection in the order in which they began to wait."""
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.flush()


_batches: WeakKeyDictionary[asyncio.AbstractEventLoop, WriteBatch] = WeakKeyDictionary()


def current_batch() -> WriteBatch:
    """The write batch of the running event loop, made at the first call."""
    loop = asyncio.get_running_loop()
    batch = _batches.get(loop)
    if batch is None:
        batch = _batches[loop] = WriteBatch(loop)
    return batch


class CoalescedTransport:
    """A transport that buffers writes until the batch is flushed; every other call flushes the buffer first.

    busy: whether other requests still wait for a response; otherwise nothing is buffered.
    """

    __slots__ = ("_batch", "_buffer", "_busy", "_size", "_transport")

    def __init__(self, transport: asyncio.Transport, busy: Callable[[], bool]) -> None:
        self._transport, self._busy = transport, busy
        self._batch = current_batch()
        self._buffer: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        self._batch.write_records()
        self.flush()
        return getattr(self._transport, name)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data behind the buffered data, now or with the next flush."""
        if not self._busy() or len(data) > MAX_BUFFERED_BYTES:
            self._batch.flush()
            self._write(data)
            return
        if not self._buffer and not self._batch.defer(self):
            self._write(data)
            return
        self._buffer.append(bytes(data))  # a copy only of a buffer that the caller may change meanwhile
        self._size += len(data)
        if self._size > MAX_BUFFERED_BYTES:
            self.flush()
        elif self._batch.is_overdue():
            self._batch.flush()

    def response_complete(self) -> None:
        """Note that what was written so far ends a whole response."""
        self._batch.response_complete()

    def flush(self) -> None:
        """Send the buffered data, unless the connection is closing."""
        buffered, self._buffer, self._size = self._buffer, [], 0
        if buffered and not self._transport.is_closing():
            self._write(b"".join(buffered))

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        """Write to the transport, with all pending records stored before."""
        self._batch.write_records()
        self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._transport.is_closing()


class CoalescingProtocol(HttpToolsProtocol):
    """HTTP/1.1 of uvicorn whose responses leave through a `CoalescedTransport`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wrap the new connection's transport, and put the write batch into its ASGI state."""
        tasks = self.tasks  # of all connections, that of the request which is being answered among them
        coalesced = CoalescedTransport(cast("asyncio.Transport", transport), lambda: len(tasks) > 1)
        super().connection_made(cast("asyncio.Transport", coalesced))
        self.app_state = self.app_state | {WRITE_BATCH: current_batch()}

    def on_response_complete(self) -> None:
        """Tell the transport that a response is whole, then uvicorn."""
        cast("CoalescedTransport", self.transport).response_complete()
        super().on_response_complete()
