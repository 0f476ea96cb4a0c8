"""Asks ports as somebody without Ray's token does, and prints what each says as JSON: FOLDER ADDRESS[=METHOD]…

With a method the address is asked by gRPC, plainly, and where FOLDER is not `-` also by TLS: with its authority alone, and with
its certificate. Without a method it is a URL.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc
import httpx

WITHIN_S = 10.0


def main() -> None:
    """Ask each address that is given."""
    folder, *asked = sys.argv[1:]
    keys = None if folder == "-" else Path(folder)
    found = {}
    for each in asked:
        address, _, method = each.partition("=")
        found[address] = _answers(address, method, keys) if method else [_status(address)]
    sys.stdout.write(json.dumps(found))


def _answers(address: str, method: str, keys: Path | None) -> list[str]:
    credentials = []
    if keys is not None:
        authority, key, chain = ((keys / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
        credentials = [grpc.ssl_channel_credentials(authority, *mine) for mine in ((), (key, chain))]
    channels = [grpc.insecure_channel(address), *(grpc.secure_channel(address, each) for each in credentials)]
    return [_code(each, method) for each in channels]


def _code(channel: grpc.Channel, method: str) -> str:
    try:
        channel.unary_unary(method)(b"", timeout=WITHIN_S)
    except grpc.RpcError as error:
        code: str = error.code().name
        return code
    finally:
        channel.close()
    return "OK"


def _status(url: str) -> str:
    try:
        return str(httpx.get(url, timeout=WITHIN_S).status_code)
    except httpx.ConnectError:
        return "refused"


if __name__ == "__main__":
    main()
