"""What callers get while an engine is killed, hangs, runs out of memory or cannot start, a client reads slowly, or the store is away."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests import waiting
from tests.ray_apps.generative.conftest import ServedDoor
from toque.functions.generative import EngineSettings, register_generative
from toque.functions.generative.engines import EngineProcess, Patience
from toque.registry.errors import Unavailable
from toque.registry.store import FolderStore

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

GROUPS = Path("/sys/fs/cgroup")
"""Control groups of version 2, or of version 1 with a folder for each controller."""
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
MODEL, CONTEXT = "faulty", 8_192
SETTINGS = EngineSettings(context_length=CONTEXT, slots=2, max_tokens=CONTEXT)
FULL = EngineSettings(context_length=128, slots=2, max_tokens=128)
ASKED: list[Any] = [{"role": "user", "content": "Count."}]
ENDLESS: dict[str, Any] = {"messages": ASKED, "logit_bias": {str(token): -100 for token in range(17)}}
"""A request whose answer ends with the context, as the vocabulary's first tokens, among which those are that end answers, are forbidden."""


@pytest.fixture(scope="module")
def faulty(served: ServedDoor, small: Path) -> ServedDoor:
    """A model of two slots, which is ready, and whose endless answers take seconds."""
    register_generative(served.registry, MODEL, weights=small, settings=SETTINGS)
    served.registry.promote(MODEL, 1)
    answered(served.client())
    return served


def answered(client: openai.OpenAI) -> Any:
    return client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=1)


def engine(door: ServedDoor) -> EngineProcess:
    return next(each for each in door.engines.processes if each.spec.settings.context_length == CONTEXT)


def is_answered_again(client: openai.OpenAI) -> bool:
    """Whether a request is answered; one that is not must be told to come again."""
    try:
        return bool(answered(client).choices)
    except openai.InternalServerError as error:
        refusal = error
    assert refusal.status_code == 503
    assert int(refusal.response.headers["retry-after"]) >= 1
    return False


def kill(door: ServedDoor, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def hang(door: ServedDoor, pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def make_memory_group() -> tuple[Path, Path]:
    """Make a control group of a megabyte; returns it, and its file that counts processes that the kernel ended. Raises: OSError."""
    is_second = (GROUPS / "cgroup.controllers").exists()
    group = (GROUPS if is_second else GROUPS / "memory") / f"toque-engine-{os.getpid()}"
    if is_second:
        (GROUPS / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    (group / ("memory.max" if is_second else "memory.limit_in_bytes")).write_text(str(1 << 20))
    if (swap := group / "memory.swap.max").exists():
        swap.write_text("0")
    return group, group / ("memory.events" if is_second else "memory.oom_control")


def run_out_of_memory(door: ServedDoor, pid: int) -> None:
    """The kernel ends the engine, which may take no more memory than it has, at a request of more text than that."""
    try:
        group, events = make_memory_group()
    except OSError as error:
        pytest.skip(f"the engine's memory cannot be limited here: {error}; it needs root and control groups")
    try:
        (group / "cgroup.procs").write_text(str(pid))
        large: list[Any] = [{"role": "user", "content": "word " * (1 << 20)}]
        with pytest.raises(openai.InternalServerError, match="engine") as refusal:
            door.client(timeout=600).chat.completions.create(model=MODEL, messages=large)
        assert refusal.value.status_code == 503
        assert int(refusal.value.response.headers["retry-after"]) >= 1
        counts = dict(line.split() for line in events.read_text().splitlines())
        assert int(counts["oom_kill"]) == 1
    finally:
        waiting.until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@pytest.mark.parametrize("fault", [kill, hang, run_out_of_memory])
def test_streams_of_a_faulty_engine_end_with_an_error_and_the_next_is_answered(
    faulty: ServedDoor, fault: Callable[[ServedDoor, int], None], monkeypatch: pytest.MonkeyPatch
):
    client, found = faulty.client(timeout=600), engine(faulty)
    monkeypatch.setattr(found, "_patience", Patience(hung_s=10))  # a third of what it is by default
    pieces = iter(client.chat.completions.create(model=MODEL, stream=True, **ENDLESS))
    cut = next(pieces).id
    assert found.pid is not None
    fault(faulty, found.pid)
    with pytest.raises(openai.APIError, match="engine"):
        list(pieces)
    waiting.until(lambda: is_answered_again(client), within_s=300)
    assert engine(faulty) is found
    (row,) = [each for each in faulty.log.rows() if each[0] == cut]
    assert not faulty.log.outputs(row)  # no answer


def refused(door: ServedDoor, version: int) -> None:
    """Promote a version that cannot be served: it is refused by number, and the one before goes on."""
    client, refusals = door.client(timeout=800), list[openai.APIStatusError]()

    def is_known() -> bool:
        with pytest.raises(openai.APIStatusError) as refusal:
            client.chat.completions.create(model=f"{MODEL}@{version}", messages=ASKED)
        refusals.append(refusal.value)
        return refusal.value.status_code != 404  # the door has not seen it yet

    door.registry.promote(MODEL, version)
    waiting.until(is_known, within_s=800)
    assert refusals[-1].status_code == 503
    assert f"{MODEL}@{version} cannot be served" in str(refusals[-1])
    assert answered(client).model == f"{MODEL}@1"
    door.registry.promote(MODEL, 1)


def test_a_version_of_spoilt_weights_is_never_served_and_the_champion_goes_on(
    faulty: ServedDoor, tmp_path: Path
):
    (tmp_path / "weights.gguf").write_bytes(b"GGUF and nothing more")
    made = register_generative(faulty.registry, MODEL, keep=1, weights=tmp_path / "weights.gguf")
    refused(faulty, made.version)


@pytest.mark.proof
@pytest.mark.skipif(
    not OVERCOMMIT.exists() or OVERCOMMIT.read_text().strip() != "0",
    reason="more memory is promised here than there is",
)
def test_a_version_without_memory_for_it_is_never_served_and_the_champion_goes_on(
    faulty: ServedDoor, weights: Path
):
    """Keys and values of 256 slots of a million tokens are six terabytes."""
    huge = EngineSettings(context_length=1 << 20, slots=256)
    refused(faulty, register_generative(faulty.registry, MODEL, weights=weights, settings=huge).version)


def test_more_requests_than_slots_wait_and_each_has_its_whole_context(faulty: ServedDoor, small: Path):
    """Keys and values of all slots are there from the start, so none runs out of them."""
    register_generative(faulty.registry, "full", weights=small, settings=FULL)
    faulty.registry.promote("full", 1)
    client = faulty.client(timeout=600)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.chat.completions.create(model="full", **ENDLESS), range(6)))
    for answer in answers:
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.total_tokens == FULL.context_length


@contextmanager
def slow_client(door: ServedDoor, model: str = MODEL, **asked: Any) -> Iterator[socket.socket]:
    """A connection with a small window, by which an endless answer was asked for, and nothing read yet."""
    address = urlsplit(door.url)
    body = json.dumps(ENDLESS | {"model": model, "stream": True} | asked).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: door\r\nauthorization: Bearer {door.token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        found.connect((address.hostname, address.port))
        found.settimeout(300)
        found.sendall(head.encode() + body)
        yield found


def test_a_client_that_reads_slowly_delays_nobody_and_gets_all_of_its_stream(faulty: ServedDoor):
    client = faulty.client(timeout=600)
    with slow_client(faulty) as connection, slow_client(faulty) as another:
        for begun in (connection, another):  # of both slots
            assert begun.recv(64).startswith(b"HTTP/1.1 200")
        for _ in range(3):  # once the engine has made the two answers, which nobody reads
            answered(client)
        stream = b""
        while data := connection.recv(512):
            stream += data
    assert b"data: [DONE]" in stream
    assert stream.count(b'"object":"chat.completion.chunk"') > CONTEXT // 4
    assert b'"finish_reason":"length"' in stream


class _Away:
    """A request to a store that does not answer."""

    def __enter__(self) -> None:
        raise Unavailable("the store does not answer")

    def __exit__(self, *_: object) -> None: ...


def test_while_the_store_is_away_ready_models_answer_and_others_are_refused(
    faulty: ServedDoor, small: Path, monkeypatch: pytest.MonkeyPatch
):
    client = faulty.client(timeout=600)
    register_generative(faulty.registry, "unopened", weights=small, settings=SETTINGS)
    faulty.registry.promote("unopened", 1)
    with monkeypatch.context() as gone:
        gone.setattr(FolderStore, "_request", lambda *_, **__: _Away())
        assert answered(client).model == f"{MODEL}@1"
        for ask in (
            client.models.list,
            lambda: client.chat.completions.create(model="unopened", messages=ASKED),
        ):
            with pytest.raises(openai.InternalServerError, match="the store does not answer") as refusal:
                ask()
            assert refusal.value.status_code == 503
            assert refusal.value.response.headers["retry-after"] == "1"
    answer = client.chat.completions.create(model="unopened", messages=ASKED, max_tokens=1)
    assert answer.model == "unopened@1"
