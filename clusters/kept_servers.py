"""Keeps the replicas of an application in HAProxy's configuration while Serve builds the application anew: FILE.

From the moment that a new release is applied until it is built, Serve (2.60) forgets which deployment answers for the application, and
writes its backend without a replica. All of its requests would take Serve's Python proxy on the head meanwhile, though every
replica is well: on a busy head none of 50 a second was answered in time. So the replicas of the configuration before
stay, as far as they say that they are healthy; HAProxy asks them on, and takes the proxy once they do not. It runs
before each start of HAProxy, with this interpreter alone.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["is_healthy", "with_kept_servers"]

HEALTH_PATH, WITHIN_S = "/-/healthz", 0.5
_BACKEND, _SERVER, _BACKUP = "backend ", "    server ", " backup"
_OK = 200


def with_kept_servers(
    text: str, before: Mapping[str, list[str]], healthy: Callable[[str], bool]
) -> tuple[str, dict[str, list[str]]]:
    """Add servers of the configuration before to backends that have none of their own.

    text: the configuration; before: lines of the servers by backend; healthy: whether the server of an address
    (`host:port`) answers. Returns: the configuration, and the lines to give to the next call.
    """
    added, kept, backend, own = [], dict[str, list[str]](), "", False

    def add_kept() -> None:
        if backend in before and not own:
            kept[backend] = before[backend]
            added.extend(_healthy(before[backend], healthy))

    for line in [*text.splitlines(), ""]:
        is_server = line.startswith(_SERVER)
        if backend and (not line.startswith(" ") or (is_server and _BACKUP in line)):
            add_kept()
            backend = ""
        if line.startswith(_BACKEND):
            backend, own = line.split()[1], False
        elif backend and is_server:
            own = True
            kept.setdefault(backend, []).append(line)
        added.append(line)
    return "\n".join(added), kept


def is_healthy(address: str) -> bool:
    """Whether a replica says that it takes requests."""
    connection = http.client.HTTPConnection(address, timeout=WITHIN_S)
    try:
        connection.request("GET", HEALTH_PATH)
        return connection.getresponse().status == _OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _healthy(lines: list[str], healthy: Callable[[str], bool]) -> list[str]:
    with ThreadPoolExecutor(len(lines)) as pool:
        found = pool.map(healthy, (line.split()[2] for line in lines))
        return [line for line, well in zip(lines, found, strict=True) if well]


def main() -> None:
    """Change the configuration, and note its servers beside it."""
    file = Path(sys.argv[1])
    noted = file.with_name(f"{file.name}.servers")
    try:
        before = json.loads(noted.read_text())
    except (OSError, ValueError):  # there was none, or its writer was killed
        before = {}
    text, kept = with_kept_servers(file.read_text(), before, is_healthy)
    for path, content in ((file, text), (noted, json.dumps(kept))):
        new = path.with_name(f"{path.name}.{os.getpid()}")
        new.write_text(content)
        new.replace(path)


if __name__ == "__main__":
    main()
