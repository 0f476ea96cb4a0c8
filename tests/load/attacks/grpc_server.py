"""A gRPC server alone, with short timeouts, in a process of its own: python -m tests.load.attacks.grpc_server PORT STORE."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

from toque.ray_apps.admission import open_admission
from toque.ray_apps.predictor.grpc import GrpcServer, Limits
from toque.ray_apps.predictor.http.auth import TokenAuthenticator
from toque.ray_apps.predictor.http.endpoint import Answer
from toque.registry import open_store


class Models:
    """HTTP endpoints that refuse every request."""

    async def request(
        self, _method: str, _path: str, _headers: Mapping[bytes, bytes], _body: bytes = b"", /
    ) -> Answer:
        return 400, [], b"{}"

    async def close(self) -> None: ...


async def serve(port: int, store: str) -> None:
    limits = Limits(handshake_s=2, idle_s=2, message_s=4)
    auth = TokenAuthenticator(open_admission(open_store(store), "grpc"), workspace=None)
    server = GrpcServer(Models(), auth, f"127.0.0.1:{port}", limits)
    await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
