"""Protocol of runs that were started and will end, in a thread, a process or on Ray."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

R_co = TypeVar("R_co", covariant=True)


@runtime_checkable
class Future(Protocol[R_co]):
    """Handle on a run that was started: its result, whether it ended, cancelling."""

    def result(self, timeout_s: float | None = None) -> R_co:
        """Wait for the result and return it.

        timeout_s: seconds to wait at most. Raises: TimeoutError after them, while the run goes on; the
        function's own error.
        """
        ...

    def done(self) -> bool:
        """Whether the run has ended, with a result or an error."""
        ...

    def cancel(self) -> None:
        """End the run if it still goes on; `result` then raises Cancelled."""
        ...
