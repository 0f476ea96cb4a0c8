"""Which models a running Serve application answers for, as far as that can be told at once.

Serve's controller runs on the head, and may not answer while that is away: no page waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["DeployedModels", "answering_applications"]

_ANSWERING = frozenset({"RUNNING", "UNHEALTHY", "DEPLOYING"})  # replicas of before may answer meanwhile
_LANGUAGE_MODELS = "generative"


def answering_applications() -> frozenset[str] | None:
    """Names of the Serve applications that may answer; None outside a cluster."""
    import ray  # late: as in the routes, it takes seconds

    if not ray.is_initialized():
        return None
    from ray import serve

    applications = serve.status().applications
    return frozenset(name for name, found in applications.items() if found.status in _ANSWERING)


class DeployedModels:
    """Tells whether a model is served. One question is asked at a time, at most once in `fresh_s`.

    applications: asks for the names of the applications that may answer. patience_s: how long a request waits for them.
    """

    def __init__(
        self,
        applications: Callable[[], frozenset[str] | None],
        *,
        fresh_s: float = 2.0,
        patience_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._fresh_s, self._patience_s, self._clock = applications, fresh_s, patience_s, clock
        self._asking: asyncio.Future[frozenset[str] | None] | None = None
        self._asked_at = 0.0

    async def tell(self, workspace: str) -> Callable[[str], bool | None]:
        """Make what says of a model of a workspace whether it is served; None where that cannot be told now."""
        names = await self._names()

        def served(model: str) -> bool | None:
            if names is None:
                return None
            from toque.ray_apps.predictor import app_name, pool_app  # late: `_question` has imported it

            if app_name(model, workspace) in names or pool_app(workspace) in names:
                return True
            return None if _LANGUAGE_MODELS in names else False  # it serves those of every workspace by name

        return served

    async def _names(self) -> frozenset[str] | None:
        asking = self._asking
        if asking is None or (asking.done() and self._clock() - self._asked_at >= self._fresh_s):
            self._asked_at = self._clock()
            asking = self._asking = asyncio.get_running_loop().run_in_executor(None, self._question)
        done, _ = await asyncio.wait({asking}, timeout=self._patience_s)
        return asking.result() if done and asking.exception() is None else None

    def _question(self) -> frozenset[str] | None:
        import toque.ray_apps.predictor  # noqa: F401  # here, as it brings Ray Serve, which takes seconds

        return self._ask()
