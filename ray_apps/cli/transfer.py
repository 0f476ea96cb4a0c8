"""Files to and from the platform: many at once, streamed, with a bar on standard error; also the bar of an invocation.

Where standard error is not a terminal nothing is drawn, and rich, which draws, is not imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from toque.ray_apps.cli.client import Client
from toque.ray_apps.cli.errors import Failed, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from toque.registry.store.blobs import LocalFile


# registry is imported by what needs it: it brings the tables, a third of a second.

_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_PARALLEL = 8
_CHUNK_BYTES = 1 << 20
Moved = Callable[[int], None]
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One file: its address at the platform, as in `runs/ID/model/weights`, its place here, its size in bytes.

    sha256: what a fetched file must have; "": whatever the platform, which checks it too, sends.
    """

    address: str
    here: Path
    size: int
    sha256: str = ""


def local(source: str) -> dict[str, LocalFile]:
    """The files of the folder (or the one file) `source`, by path. Raises: UsageError."""
    from toque.registry import InvalidInput
    from toque.registry.store.blobs import scan

    try:
        return scan(Path(source))
    except InvalidInput as error:
        raise UsageError(str(error)) from error


def outgoing(found: Mapping[str, LocalFile], address: str) -> list[Transfer]:
    """What stores files below `address`."""
    return [Transfer(f"{address}/{path}", file.path, file.size) for path, file in found.items()]


def fetch(client: Client, transfers: Sequence[Transfer], *, label: str) -> None:
    """Get files; each appears whole, its digest checked, or not at all. Raises: Refused; Unreachable."""
    _all(lambda each, moved: _fetch(client, each, moved), transfers, label)


def send(client: Client, transfers: Sequence[Transfer], *, label: str) -> None:
    """Store files at the platform. Raises: Refused; Unreachable."""
    _all(lambda each, moved: _send(client, each, moved), transfers, label)


def below(folder: Path, path: str) -> Path:
    """The place of a file that the platform names, below `folder`. Raises: Failed if it would leave it."""
    from toque.registry import InvalidInput
    from toque.registry.names import check_key

    try:
        return folder / check_key(path)
    except InvalidInput as error:
        raise Failed(f"the platform names a file that has no place below {folder}: {error}") from error


def _all(
    move: Callable[[Transfer, Callable[[int], None]], None], transfers: Sequence[Transfer], label: str
) -> None:
    from concurrent.futures import ThreadPoolExecutor  # late: imports logging, for those who transfer

    total = sum(each.size for each in transfers)
    with transfer_bar(label, total) as moved, ThreadPoolExecutor(_PARALLEL) as pool:
        for done in [pool.submit(move, each, moved) for each in transfers]:
            done.result()


def _fetch(client: Client, transfer: Transfer, moved: Callable[[int], None]) -> None:
    transfer.here.parent.mkdir(parents=True, exist_ok=True)
    partial = transfer.here.with_name(f".{transfer.here.name[:200]}.partial")
    import hashlib  # late: OpenSSL, for those who transfer something

    digest = hashlib.sha256()
    try:
        with (
            client.stream("GET", f"{_ARTIFACTS}/{quote(transfer.address)}") as answer,
            partial.open("wb") as sink,
        ):
            for chunk in answer.iter_bytes(_CHUNK_BYTES):
                sink.write(chunk)
                digest.update(chunk)
                moved(len(chunk))
        if transfer.sha256 not in {"", digest.hexdigest()}:
            raise Failed(
                f"{transfer.address} came with the digest {digest.hexdigest()}, not {transfer.sha256}: it was changed on "
                "the way; fetch it again"
            )
        partial.replace(transfer.here)
    finally:
        partial.unlink(missing_ok=True)


def _send(client: Client, transfer: Transfer, moved: Callable[[int], None]) -> None:
    def chunks() -> Iterator[bytes]:
        with transfer.here.open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                yield chunk
                moved(len(chunk))

    size = {"Content-Length": str(transfer.size)}
    with client.stream("PUT", f"{_ARTIFACTS}/{quote(transfer.address)}", content=chunks(), headers=size):
        pass  # the answer says nothing more


@contextmanager
def transfer_bar(label: str, size_bytes: int, *, console: Console | None = None) -> Iterator[Moved]:
    """Draw a bar over `size_bytes`; gives the call that takes the bytes of each piece as it is moved.

    That call is what `on_progress` of `Registry.create_version` and `download` takes. console: where the bar is drawn if
    that is a terminal; None: standard error.
    """
    screen = console or _terminal()
    if screen is None or not screen.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(label, total=size_bytes)
        yield lambda moved_bytes: bar.update(task, advance=moved_bytes)


@contextmanager
def invocation_bar(*, console: Console | None = None) -> Iterator[Report]:
    """Draw the progress that an invocation reports; gives the call that takes the invocation as the platform shows it.

    console: as for `transfer_bar`.
    """
    screen = console or _terminal()
    if screen is None or not screen.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("", total=1.0, visible=False)

        def report(invocation: dict[str, Any]) -> None:
            at = invocation["progress"]
            if at:
                text = at["text"] or invocation["function"]
                bar.update(task, description=text, completed=at["done"], total=at["total"], visible=True)

        yield report


def _terminal() -> Console | None:
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True)
