"""Waits of answers until their records are where the mode of the log promises them to be.

Without a confirmation, mode `redis` answers all the same and counts it; mode `two_nodes` refuses the request.
"""

from __future__ import annotations

from typing import Protocol

from toque.ray_apps.predictor.protocol.errors import NotLogged

__all__ = ["Confirmation", "ConfirmedLog"]


class ConfirmedLog(Protocol):
    """A log that tells when a record is where it was promised to be."""

    @property
    def confirms(self) -> bool:
        """Whether records can be confirmed now, as far as is known."""
        ...

    @property
    def why_unconfirmed(self) -> str:
        """What keeps records from being confirmed."""
        ...

    async def confirmed(self, number: int, /) -> bool:
        """Wait until record `number` is confirmed; False if it is not within the log's bound."""
        ...


class Confirmation:
    """Waits for one model's records. strict: an answer whose record is not confirmed is refused.

    unconfirmed: answers that left with their record in the file alone. refused: requests.
    """

    def __init__(self, log: ConfirmedLog, *, strict: bool) -> None:
        self._log, self._strict = log, strict
        self.unconfirmed = 0
        self.refused = 0

    def check(self) -> None:
        """Refuse a request before its record is written, if it could not be confirmed. Raises: NotLogged."""
        if self._strict and not self._log.confirms:
            self._miss()

    async def of(self, number: int) -> None:
        """Wait for record `number`; 0: the log was full. Raises: NotLogged if it is not confirmed, and must be."""
        if not (number and await self._log.confirmed(number)):
            self._miss()

    def _miss(self) -> None:
        if not self._strict:
            self.unconfirmed += 1
            return
        self.refused += 1
        raise NotLogged(
            f"the answer could not be logged on two nodes: {self._log.why_unconfirmed}; ask again"
        )
