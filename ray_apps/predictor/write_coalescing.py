"""Answers of one moment, sent one after another at its end.

Each write to a connection may wake who reads it, in the midst of the next answer. While others are being answered, what
is written waits until all that the event loop has ready is done, or two milliseconds; nobody waits for answers that take
long themselves. For small models that is a third more requests a second. What has to be done before answers leave, the
writing of their records, is done for all of a moment together, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, cast
from weakref import WeakKeyDictionary, ref

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["STATE", "Gathered", "GatheringProtocol", "Moment", "moment"]

STATE: Final = "toque.moment"
"""Where ASGI's state of a request has the moment at whose end its answer leaves."""

SOON_S: Final = 5e-4
"""From one answer to the next, while it is worth to wait for that."""
LONGEST_S: Final = 2e-3
MAX_KEPT_BYTES: Final = 64 << 10
"""Of one connection; sending takes longer than waking beyond that, and who writes must feel that nobody reads."""


class Debtor(Protocol):
    """Who has something to do before an answer leaves."""

    def settle(self, owed: list[Any], /) -> None:
        """Do all of it; never raises, since others' answers leave by that."""
        ...


class Moment:
    """What waits to be sent on the connections of one event loop, and what is to be done before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)
        self._owed: dict[Debtor, list[Any]] = {}
        self._waiting: list[Gathered] = []
        self._since = 0.0
        self._answered = 0.0

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # elsewhere it is none

    def is_here(self) -> bool:
        """Whether the running event loop is its own."""
        return self._loop() is asyncio.get_running_loop()

    def owed_by(self, who: Debtor) -> list[Any]:
        """What `who` settles before anything leaves any more; to be added to."""
        found = self._owed.get(who)
        if found is None:
            found = self._owed[who] = []
        return found

    def answered(self) -> None:
        """An answer is whole."""
        self._answered = time.monotonic()

    def keeps(self, connection: Gathered) -> bool:
        """Whether what is written now is to wait: if the answer before was just there, the next one is soon.

        If not, what waited already has gone.
        """
        now = time.monotonic()
        if now - self._answered > SOON_S:
            self.send()
            return False
        if not self._waiting:
            self._since = now
            asyncio.get_running_loop().call_soon(self.send)
        self._waiting.append(connection)
        return True

    def is_over(self) -> bool:
        """Whether something has waited for as long as it may."""
        return time.monotonic() - self._since > LONGEST_S

    def settle(self) -> None:
        """Have done what is owed."""
        if self._owed:
            owed, self._owed = self._owed, {}
            for debtor, what in owed.items():
                debtor.settle(what)

    def send(self) -> None:
        """Send all of it, in the order in which it began to wait."""
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.send()


_moments: WeakKeyDictionary[asyncio.AbstractEventLoop, Moment] = WeakKeyDictionary()


def moment() -> Moment:
    """That of the running event loop."""
    loop = asyncio.get_running_loop()
    found = _moments.get(loop)
    if found is None:
        found = _moments[loop] = Moment(loop)
    return found


class Gathered:
    """A transport that keeps what is written until the moment is over; all else it does after that.

    busy: whether other requests have no answer yet; without, nothing waits.
    """

    __slots__ = ("_busy", "_kept", "_moment", "_size", "_transport")

    def __init__(self, transport: asyncio.Transport, busy: Callable[[], bool]) -> None:
        self._transport, self._busy = transport, busy
        self._moment = moment()
        self._kept: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        self._moment.settle()
        self.send()
        return getattr(self._transport, name)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send this after what is kept, now or soon."""
        if not self._busy():
            self._moment.send()
            self._leave(data)
            return
        if not self._kept and not self._moment.keeps(self):
            self._leave(data)
            return
        self._kept.append(bytes(data))  # itself, unless who writes may change it meanwhile
        self._size += len(data)
        if self._size > MAX_KEPT_BYTES:
            self.send()
        elif self._moment.is_over():
            self._moment.send()

    def answered(self) -> None:
        """What was written is a whole answer."""
        self._moment.answered()

    def send(self) -> None:
        """Send what is kept, unless nobody is there any more."""
        kept, self._kept, self._size = self._kept, [], 0
        if kept and not self._transport.is_closing():
            self._leave(b"".join(kept))

    def _leave(self, data: bytes | bytearray | memoryview) -> None:
        """The one way out."""
        self._moment.settle()
        self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._transport.is_closing()


class GatheringProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, its answers gathered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        tasks = self.tasks  # of all connections, that of the request which is being answered among them
        gathered = Gathered(cast("asyncio.Transport", transport), lambda: len(tasks) > 1)
        super().connection_made(cast("asyncio.Transport", gathered))
        self.app_state = self.app_state | {STATE: moment()}

    def on_response_complete(self) -> None:
        """An answer is whole."""
        cast("Gathered", self.transport).answered()
        super().on_response_complete()
