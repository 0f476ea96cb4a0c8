"""The attacks by gRPC come to nothing, and cost the server's process a bounded amount of memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from toque.load.attacks.grpc import ATTACKS
from toque.load.attacks.target import Target
from toque.registry import Access, open_store

MOST_BYTES = 100 << 20


@dataclass(frozen=True)
class Known(Target):
    """A target without a gateway, whose tokens are made in its store."""

    store: str = ""

    async def token_of(self, role: str, **fields: Any) -> str:
        access = Access(open_store(self.store), actor="root")
        return access.create_token(f"attack-{len(access.list_tokens())}", role, **fields)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Known, int]]:
    store, port = f"file://{tmp_path_factory.mktemp('store')}", free_port()
    token = Access(open_store(store), actor="root").create_token("admin", "admin", workspace="*")
    command = [sys.executable, "-m", "tests.load.attacks.grpc_server", str(port), store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Known("", f"127.0.0.1:{port}", token, store=store), process.pid
        process.kill()


def peak_bytes(pid: int) -> int:
    """The most memory that a process had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    raise AssertionError(pid)


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_comes_to_nothing(server: tuple[Known, int], name: str):
    target, pid = server
    before = peak_bytes(pid)
    finding = await ATTACKS[name](target)
    assert finding.bounded, finding.details
    assert (finding.name, bool(finding.details)) == (name, True)
    grown = peak_bytes(pid) - before
    assert grown < MOST_BYTES, f"{grown >> 20} MiB"


async def test_a_platform_without_grpc_is_left_alone():
    finding = await ATTACKS["large_messages"](Target("http://127.0.0.1:1", None, "token"))
    assert finding.bounded
    assert "left out" in finding.details
