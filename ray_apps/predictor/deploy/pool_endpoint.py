"""The HTTP endpoint of a pool, with the routes of every model below the model's name."""

from __future__ import annotations

import orjson

from toque.ray_apps.predictor.deploy.pool import Pool
from toque.ray_apps.predictor.http.auth import INFER, READ, WORKSPACE, Authenticator
from toque.ray_apps.predictor.http.endpoint import JSON, Answer, Endpoint, Request
from toque.ray_apps.predictor.protocol.errors import NotFound
from toque.registry import InvalidInput
from toque.registry.names import check_name

__all__ = ["PoolEndpoint"]


class PoolEndpoint(Endpoint):
    """An ASGI application that serves a pool's models; `GET /` describes the pool itself.

    auth: admits a request or refuses it, before anything is loaded. max_in_flight: of all models together.
    """

    def __init__(self, pool: Pool, auth: Authenticator, *, max_in_flight: int = 1_280) -> None:
        super().__init__(max_in_flight=max_in_flight)
        self.pool, self.auth = pool, auth

    async def close(self) -> None:
        """Close the pool and all its models."""
        await self.pool.close()

    def index(self) -> list[dict[str, str]]:
        """The versions of the models in memory; models without a request so far are missing."""
        return self.pool.index()

    def on_startup(self) -> None:
        """Start the pool, which loads pinned models before the first request."""
        self.pool.start()

    async def answer(self, request: Request) -> Answer:
        """Status, headers and body of the answer to one request. Raises: PredictorError."""
        path = request.path.removeprefix("/")
        name = path.partition("/")[0]
        request.admitted = await self.auth.admit(
            request.headers.get(b"authorization"),
            INFER if path.endswith("/infer") else READ,
            model=name or None,
            what=f"{request.method} {request.path}",
            client=request.client,
            workspace=request.headers.get(WORKSPACE),
        )
        self.pool.start()
        if not name:
            return 200, [JSON], orjson.dumps(self.pool.describe())
        try:
            check_name(name, what="model")
        except InvalidInput as error:
            raise NotFound(f"path: {error}") from None
        request.path = path.removeprefix(name)
        return await self.pool.answer(name, request)
