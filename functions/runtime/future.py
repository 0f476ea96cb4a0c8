"""The answer to come of a run, whoever runs it."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

R_co = TypeVar("R_co", covariant=True)


@runtime_checkable
class Future(Protocol[R_co]):
    """A run that was started and will end."""

    def result(self, timeout_s: float | None = None) -> R_co:
        """The result, waited for.

        timeout_s: seconds to wait at most; the work goes on. Raises: TimeoutError then, else what the
        function raised.
        """
        ...

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        ...

    def cancel(self) -> None:
        """End the work if it still runs; `result` then raises Cancelled."""
        ...
