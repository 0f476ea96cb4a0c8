"""Where HAProxy sends the turns of conversations with language models: by the configuration that this version of Serve writes."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clusters.test_haproxy import door, launch
from tests.waiting import until
from toque.clusters.conversations import MOST_OF_SHARE

APPLICATION, NAMES = "generative", ("a", "b", "c")
SYSTEM, LONG = {"role": "system", "content": "You help."}, "word " * 4_000


class Replica(BaseHTTPRequestHandler):
    """Answers with its name, once its server is free."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.held.append(self)  # type: ignore[attr-defined]
        assert self.server.free.wait(60)  # type: ignore[attr-defined]
        self.answer()

    def answer(self) -> None:
        content = self.server.name.encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def replicas() -> Iterator[dict[str, ThreadingHTTPServer]]:
    """Replicas by name; one whose event `free` is cleared keeps its requests."""
    found = {}
    with ExitStack() as stack:
        for name in (*NAMES, "d"):
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Replica))
            server.name, server.free, server.held = name, threading.Event(), []  # type: ignore[attr-defined]
            server.free.set()  # type: ignore[attr-defined]
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            found[name] = server
        yield found


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "smol", "messages": list(messages), **more}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def ask(client: httpx.Client, body: dict[str, Any], path: str = "/chat/completions", **headers: str) -> str:
    answer = client.post(path, json=body, headers=headers)
    assert answer.status_code == 200
    return answer.text


ANSWERED: Any = [{"role": "assistant", "content": "4"}, user("And 3+3?")]


def openings(number: int) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Path, first turn and next turn of a conversation, as clients send them."""
    said, parts = user(f"Question {number}"), user([{"type": "text", "text": f"Question {number}"}])
    answered = [*ANSWERED, *ANSWERED]
    return [
        ("/chat/completions", chat(said), chat(said, *answered)),
        ("/chat/completions", chat(SYSTEM, said), chat(SYSTEM, said, *answered, stream=True)),
        ("/chat/completions", chat(SYSTEM, parts), chat(SYSTEM, parts, *answered)),
        ("/chat/completions", chat(said), chat(said, *answered, user(LONG))),  # more than HAProxy reads
        ("/responses", {"input": [said]}, {"input": [said, *answered]}),
        ("/responses", {"instructions": "Help.", "input": f"Q {number}"}, {"input": f"Q {number}", "stream": True}),
        ("/completions", {"prompt": f"{number} {LONG}"}, {"prompt": f"{number} {LONG} and more", "seed": 1}),
        ("/chat/completions", chat(user("x"), prompt_cache_key=f"k{number}"), chat(user("y"), prompt_cache_key=f"k{number}")),
    ]  # fmt: skip


def ports(replicas: dict[str, ThreadingHTTPServer], *names: str) -> dict[str, int]:
    return {name: replicas[name].server_port for name in names}


def test_all_turns_of_a_conversation_go_to_one_replica_and_conversations_to_all(
    tmp_path: Path, replicas: dict[str, ThreadingHTTPServer]
) -> None:
    kinds = len(openings(0))
    went: list[Counter[str]] = [Counter() for _ in range(kinds)]
    with (
        door(tmp_path, ports(replicas, *NAMES), application=APPLICATION) as url,
        httpx.Client(base_url=url) as client,
    ):
        for number in range(30):
            for kind, (path, first, second) in enumerate(openings(number)):
                replica = ask(client, first, path)
                assert [ask(client, second, path) for _ in range(2)] == [replica] * 2, (kind, number)
                went[kind][replica] += 1
    for kind, counts in enumerate(went):  # fewer than 2 of 30 by chance: once in 12,000
        assert min(counts[name] for name in NAMES) >= 2, (kind, counts)


def test_what_has_no_conversation_is_spread_and_a_named_caller_stays(
    tmp_path: Path, replicas: dict[str, ThreadingHTTPServer]
) -> None:
    with (
        door(tmp_path, ports(replicas, *NAMES), application=APPLICATION) as url,
        httpx.Client(base_url=url) as client,
    ):
        assert {client.get("/models").text for _ in range(40)} == set(NAMES)
        huge = chat({"role": "system", "content": LONG}, user("hi"))
        assert len({ask(client, huge, **{"x-toque-unit": "ada"}) for _ in range(5)}) == 1


def test_others_keep_their_conversations_when_a_replica_goes_or_comes(
    tmp_path: Path, replicas: dict[str, ThreadingHTTPServer]
) -> None:
    def placed(*names: str) -> list[str]:
        servers = ports(replicas, *names)
        with door(tmp_path, servers, application=APPLICATION) as url, httpx.Client(base_url=url) as client:
            return [ask(client, chat(SYSTEM, user(f"Question {each}"))) for each in range(60)]

    before, without, more = placed(*NAMES), placed("c", "a"), placed("d", *NAMES)
    assert {old for old, new in zip(before, without, strict=True) if new != old} == {"b"}
    assert {new for old, new in zip(before, more, strict=True) if new != old} == {"d"}


def test_beyond_its_share_a_replica_is_passed_over_and_gets_its_conversation_back(
    tmp_path: Path, replicas: dict[str, ThreadingHTTPServer]
) -> None:
    body, count = chat(user("the same")), 12
    with (
        door(tmp_path, ports(replicas, *NAMES), application=APPLICATION) as url,
        httpx.Client(base_url=url, timeout=60) as client,
        ThreadPoolExecutor(count) as pool,
    ):
        home = ask(client, body)
        for each in replicas.values():
            each.free.clear()  # type: ignore[attr-defined]
        asked = [pool.submit(ask, client, body) for _ in range(count)]
        until(lambda: sum(len(each.held) for each in replicas.values()) == 1 + count)  # type: ignore[attr-defined]
        for each in replicas.values():
            each.free.set()  # type: ignore[attr-defined]
        went = Counter(each.result() for each in asked)
        assert [ask(client, body) for _ in range(3)] == [home] * 3
    average = count / len(NAMES)
    assert went[home] == max(went.values())
    assert average <= went[home] <= average * MOST_OF_SHARE / 100 + 1


def test_the_configuration_is_changed_once_and_only_for_language_models(
    tmp_path: Path, replicas: dict[str, ThreadingHTTPServer]
) -> None:
    for application, times in ((APPLICATION, 1), ("app", 0)):
        with door(tmp_path, ports(replicas, *NAMES), application=application):
            once = (tmp_path / "haproxy.cfg").read_text()
        assert once.count("balance hash") == times
        assert once.count(" weight ") == len(NAMES) * times
        launch(tmp_path / "haproxy.cfg")
        assert (tmp_path / "haproxy.cfg").read_text() == once
