"""Lets HAProxy keep a conversation with a language model on the replica whose engine has its prefix: FILE.

By Serve's own choice, the replica with the fewest connections, the next turn may go to an engine that has not seen those before and
reads them all again. The backend of language models takes a consistent hash of the conversation instead, which is the same on
every node; a replica that has more than its share of the requests under way is passed over. It runs before each start of HAProxy,
with this interpreter alone.
"""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path
from typing import Final

__all__ = ["with_conversations"]

MOST_OF_SHARE: Final = 150
"""Requests that a replica may have under way, in per cent of the average of all; beyond it the next one of the ring is asked."""
_BACKEND, _SERVER, _BACKUP = "backend http-generative", "    server ", " backup"
_IDS: Final = 2**20 - 1
"""Of a server's id HAProxy hashes the last 20 bits."""
_WEIGHT: Final = 32
"""Of each server, which is 16 times as often in the ring, so that shares are equal but for some per cent."""

# What a conversation is known by: `prompt_cache_key`, else all up to the user's first message, else whom the request is for. A body is
# read as far as it fits HAProxy's buffer, 16 KB; of one whose first messages are longer counts what it begins with.
_FIRST: Final = (
    "messages[0].content",
    "messages[0].content[0].text",
    "input[0].content",
    "input[0].content[0].text",
    "input",
)
_SECOND: Final = tuple(path.replace("[0]", "[1]", 1) for path in _FIRST[:-1])
_CHOICE: Final = "\n".join(
    f"    {line}"
    for line in (
        "balance hash var(txn.conversation)",
        "hash-type consistent sdbm avalanche",
        f"hash-balance-factor {MOST_OF_SHARE}",
        # A request whose replica dies is answered 503 then: where it came by a connection that another had used, HAProxy would
        # close that of the caller without an answer.
        "option http-server-close",
        "http-request wait-for-body time 60s if METH_POST",
        "acl begins_with_user req.body,json_query('$.messages[0].role') -m str user",
        "acl begins_with_user req.body,json_query('$.input[0].role') -m str user",
        "acl has_first var(txn.first) -m found",
        "acl has_second var(txn.second) -m found",
        "acl is_known var(txn.conversation) -m found",
        *(
            f"http-request set-var(txn.first) req.body,json_query('$.{path}'),xxh64 unless has_first"
            for path in _FIRST
        ),
        "http-request set-var(txn.first) req.body,json_query('$.prompt'),bytes(0,256),xxh64 unless has_first",
        *(
            f"http-request set-var(txn.second) req.body,json_query('$.{path}'),xxh64 unless begins_with_user or has_second"
            for path in _SECOND
        ),
        "http-request set-var(txn.conversation) req.body,json_query('$.prompt_cache_key')",
        "http-request set-var-fmt(txn.conversation) %[var(txn.first)]-%[var(txn.second)] if has_first !is_known",
        "http-request set-var(txn.conversation) req.hdr(x-toque-unit) unless is_known",
        "http-request set-var(txn.conversation) req.body,bytes(0,4096),xxh64 if METH_POST !is_known",
        "http-request set-var(txn.conversation) uuid() unless is_known",
    )
)


def with_conversations(text: str) -> str:
    """Choose the replicas of language models by conversation. text: the configuration; one that has been changed stays as it is.

    A replica's place in the ring follows from its name, so that the others keep their conversations when it comes or goes.
    """
    begin, ours, rest = text.partition(f"\n{_BACKEND}\n")
    own, ends, others = rest.partition("\nbackend ")
    if not ours or _CHOICE in own:
        return text
    head, *servers = own.split(f"\n{_SERVER}")
    taken = set[int]()
    placed = [server if _BACKUP in server else _placed(server, taken) for server in servers]
    return begin + ours + f"\n{_SERVER}".join([f"{head}\n{_CHOICE}", *placed]) + ends + others


def _placed(server: str, taken: set[int]) -> str:
    """Put a server, given by what follows the word in its line and by the lines below, at a place of the ring that is its own."""
    number = zlib.crc32(server.split(maxsplit=1)[0].encode()) % _IDS + 1
    while number in taken:
        number = number % _IDS + 1
    taken.add(number)
    line, *below = server.split("\n")
    return "\n".join([f"{line} id {number} weight {_WEIGHT}", *below])


def main() -> None:
    """Change the configuration where it stands."""
    file = Path(sys.argv[1])
    new = file.with_name(f"{file.name}.{os.getpid()}")
    new.write_text(with_conversations(file.read_text()))
    new.replace(file)


if __name__ == "__main__":
    main()
