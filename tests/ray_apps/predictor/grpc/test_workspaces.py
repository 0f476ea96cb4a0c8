"""The workspace of a gRPC call: its metadata, or else the caller's own, picks the path of the HTTP endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.ports import free_port
from toque.ray_apps.admission import open_admission
from toque.ray_apps.predictor.grpc import GrpcServer
from toque.ray_apps.predictor.http.auth import NoAuthentication, TokenAuthenticator
from toque.registry import Access, open_store
from toque.registry.access import Grant

GRANTS = {
    "ours": ["caller:team"], "default": ["caller"], "both": ["caller:team", "caller:other"], "viewer": ["viewer:team"],
    "narrow": ["caller:team:late"], "labeller": ["labeller:team"], "admin": ["admin:*"],
}  # fmt: skip


class Recording:
    """HTTP endpoints that note what they are asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes | None]] = []

    async def request(
        self, _method: str, path: str, headers: Mapping[bytes, bytes], _body: bytes = b""
    ) -> Any:
        self.asked.append((path, headers.get(b"x-toque-workspace")))
        body = b"[]" if path.endswith("/index") else b"{}"
        return 200, [], b"" if path.endswith("/infer") else body

    async def close(self) -> None: ...


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[tuple[Recording, Any, dict[str, str]]]:
    store = open_store(f"file://{tmp_path}/store")
    access = Access(store, actor="root")
    for name in ("team", "other"):
        access.create_workspace(name)
    tokens = {
        who: access.create_token(who, grants=[Grant.parse(each) for each in given])
        for who, given in GRANTS.items()
    }
    models, address = Recording(), f"127.0.0.1:{free_port()}"
    server = GrpcServer(models, TokenAuthenticator(open_admission(store, "grpc"), workspace=None), address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield models, service_pb2_grpc.GRPCInferenceServiceStub(channel), tokens
    await server.stop(0)


def login(token: str, workspace: str | None = None) -> tuple[tuple[str, str], ...]:
    named = () if workspace is None else (("x-toque-workspace", workspace),)
    return (("authorization", f"Bearer {token}"), *named)


@pytest.mark.parametrize(
    ("who", "named", "path"),
    [
        ("ours", None, "/workspaces/team/v2/models/late"),
        ("ours", "team", "/workspaces/team/v2/models/late"),
        ("narrow", None, "/workspaces/team/v2/models/late"),
        ("default", None, "/v2/models/late"),
        ("both", "other", "/workspaces/other/v2/models/late"),
        ("admin", None, "/v2/models/late"),
        ("admin", "team", "/workspaces/team/v2/models/late"),
        ("ours", "other", None),
        ("ours", "default", None),
        ("both", None, None),  # of two workspaces, none is its own
        ("admin", "nowhere", None),
        ("admin", "../../tokens", None),
        ("labeller", None, None),
        ("viewer", None, None),
    ],
)
async def test_a_call_goes_to_the_workspace_that_it_names_or_else_the_callers(
    proxy: Any, who: str, named: str | None, path: str | None
):
    models, stub, tokens = proxy
    call = stub.ModelInfer(
        service_pb2.ModelInferRequest(model_name="late"), metadata=login(tokens[who], named)
    )
    if path is None:
        code = await call.code()
        expected = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND}
        assert code in expected
        assert models.asked == []
    else:
        await call
        assert models.asked == [(f"{path}/infer", named.encode() if named else None)]


async def test_documents_are_those_of_the_workspace(proxy: Any):
    models, stub, tokens = proxy
    metadata = login(tokens["viewer"])
    await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), metadata=metadata)
    await stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="late"), metadata=metadata)
    await stub.ModelReady(service_pb2.ModelReadyRequest(name="late", version="3"), metadata=metadata)
    await stub.ServerMetadata(service_pb2.ServerMetadataRequest(), metadata=metadata)
    assert [path for path, _ in models.asked] == [
        "/v2/repository/index", "/workspaces/team/v2/models/late", "/workspaces/team/v2/models/late/versions/3/ready",
        "/v2",
    ]  # fmt: skip
    assert models.asked[0][1] == b"team"


async def test_without_authentication_the_metadata_alone_decides():
    models, address = Recording(), f"127.0.0.1:{free_port()}"
    server = GrpcServer(models, NoAuthentication(workspace=None), address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="late")
        await stub.ModelInfer(request)
        await stub.ModelInfer(request, metadata=(("x-toque-workspace", "team"),))
        call = stub.ModelInfer(request, metadata=(("x-toque-workspace", "a/b"),))
        assert await call.code() == grpc.StatusCode.NOT_FOUND
    await server.stop(0)
    assert [path for path, _ in models.asked] == [
        "/v2/models/late/infer", "/workspaces/team/v2/models/late/infer",
    ]  # fmt: skip
