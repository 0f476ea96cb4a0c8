"""Attacks through functions: secrets to a stranger's address, files outside, modules by name."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any, Final

from toque.load.attacks.target import Attacks, Outcome, Target

ATTACKS: Final = Attacks()
_REFUSED = range(400, 500)


@ATTACKS
async def send_a_secret_away(target: Target) -> Outcome:
    """Ask for an alert to an address of our own with a secret of the platform, in every form that was ever accepted."""
    received: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(65_536))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    alarm = {"model": target.model or "m", "monitor": "drift", "cohort": "2024-01-01", "findings": []}
    sinks: list[Any] = [
        {"kind": "webhook", "url": address, "secret": "TOQUE_REDIS_URL"},
        {"kind": "webhook", "url": address, "token_secret": "TOQUE_REDIS_URL"},
        address,
    ]
    async with server, target.client(await target.token_of("operator")) as client:
        bodies = [
            body
            for sink in sinks
            for body in ({"sink": sink, "alarm": alarm}, {"sink": sink, "alert": {"alarm": alarm}})
        ]
        statuses = {(await client.post("/functions/send_alert", json=body)).status_code for body in bodies}
    held = not received and all(status in _REFUSED for status in statuses)
    return held, f"answers {sorted(statuses)}, {len(received)} connections came"


@ATTACKS
async def remove_foreign_files(target: Target) -> Outcome:
    """Ask the drain to treat a folder of ours, which looks like a writer's, as one of the platform's."""
    with tempfile.TemporaryDirectory() as folder:
        writer = Path(folder) / "predictions" / "writer"
        writer.mkdir(parents=True)
        (writer / "lock").touch()
        (writer / "precious").write_text("mine")
        async with target.client(await target.token_of("operator")) as client:
            answer = await client.post("/functions/drain_predictions", json={"wal_root": folder})
        kept = (writer / "precious").exists()  # one look at a temporary folder
    held = kept and answer.status_code in _REFUSED
    return held, f"{answer.status_code}, files kept: {kept}"


@ATTACKS
async def import_a_module(target: Target) -> Outcome:
    """Name modules that exist and that do not: the answers must not tell one from the other."""
    modules = ("this", "antigravity", "no_such_module_at_all")
    async with target.client(await target.token_of("viewer")) as client:
        answers = [await client.get(f"/functions/{module}:x") for module in modules]
    texts = {answer.text.replace(module, "") for answer, module in zip(answers, modules, strict=True)}
    statuses = {answer.status_code for answer in answers}
    held = statuses == {404} and len(texts) == 1
    return held, f"answers {sorted(statuses)}, {len(texts)} texts"
