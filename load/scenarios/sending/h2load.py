"""Closed loop of requests by `h2load`, for JSON over HTTP/1.1 and for gRPC."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ask_by_h2load"]

INFER = "/inference.GRPCInferenceService/ModelInfer"


def ask_by_h2load(
    url: str, headers: Mapping[str, str], body: bytes, connections: int, seconds: float, folder: Path
) -> list[int]:
    """Measure how long each answer took, in sorted microseconds, with one request at a time per connection.

    url: "http://…", or "grpc://host:port" for calls of ModelInfer, whose message is `body`.
    Raises: RuntimeError if an answer is no success; a refusal by gRPC is a 200 too, and has no message.
    """
    sent, log = folder / "h2load.body", folder / "h2load.log"
    log.unlink(missing_ok=True)
    kind, shortest, place = "--h1", 0, url
    if url.startswith("grpc://"):
        shortest = _ask_once(url.removeprefix("grpc://"), headers, body)
        body = _framed(body)
        headers = {**headers, "Content-Type": "application/grpc", "TE": "trailers"}
        kind, place = "--npn-list=h2c", f"http://{url.removeprefix('grpc://')}{INFER}"
    sent.write_bytes(body)
    options = [option for name, value in headers.items() for option in ("-H", f"{name.lower()}: {value}")]
    done = subprocess.run(
        ["h2load", "-t1", f"-c{connections}", "-m1", f"-D{seconds:.0f}", kind, "-d", str(sent),
         "--log-file", str(log), *options, place],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rows = [line.split() for line in log.read_text().splitlines()]
    count, size = (re.search(what, done.stdout) for what in (r"(\d+) succeeded", r"\((\d+)\) data"))
    assert count is not None and size is not None  # noqa: S101, PT018 - h2load prints them
    if not rows or any(status != "200" for _, status, _ in rows) or int(size[1]) < int(count[1]) * shortest:
        raise RuntimeError(f"{url}: answers that are no predictions:\n{done.stdout}")
    return sorted(int(microseconds) for _, _, microseconds in rows)


def _framed(message: bytes) -> bytes:
    """Frame a message as gRPC sends it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _ask_once(address: str, headers: Mapping[str, str], message: bytes) -> int:
    """Call once as a client does, and return the size of the answer's message.

    Raises: grpc.RpcError if it is refused.
    """
    import grpc  # late: only gRPC needs it

    with grpc.insecure_channel(address) as channel:
        metadata = (("authorization", headers["Authorization"]),)
        answer: bytes = channel.unary_unary(INFER)(message, metadata=metadata, wait_for_ready=True)
    return len(_framed(answer))
