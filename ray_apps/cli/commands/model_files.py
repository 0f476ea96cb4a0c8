"""`toque models register` and `download`: a version's files, to the platform and from it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from ray_apps.cli import transfer as files
from ray_apps.cli.client import Client, Refused, Unreachable, client_of
from ray_apps.cli.command import UsageError, add
from ray_apps.cli.commands.runs import API
from ray_apps.cli.output import say

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands

_DEFAULT_EXPERIMENT = "0"
_ALLOW_CODE = "toque.allow_code"


def register(models: Commands) -> None:
    """Add the commands to the group of models."""
    making = add(models, "register", _register, "register the files of a folder as the next version")
    making.add_argument("model", help="made if there is none of that name")
    making.add_argument("source", help="the folder, or one file")
    making.add_argument("--description", default="")
    making.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE")
    making.add_argument(
        "--allow-code",
        action="append",
        default=[],
        metavar="PATH",
        help="a file that can execute code, accepted",
    )
    fetching = add(models, "download", _download, "get a version's files, digests checked")
    fetching.add_argument("model")
    fetching.add_argument("version", help="its number or an alias")
    fetching.add_argument("--to", default=".", metavar="FOLDER", help="default: here")


def _register(given: argparse.Namespace) -> int:
    client, tags = client_of(given), [_tag(text) for text in given.tag]
    if given.allow_code:
        tags.append({"key": _ALLOW_CODE, "value": ",".join(given.allow_code)})
    found = files.local(given.source)
    _ensure(client, given.model)
    with _uploading(client, given.model) as run_id:
        files.send(client, files.outgoing(found, f"runs/{run_id}/model"), label=given.model)
    body = {
        "name": given.model,
        "source": f"runs:/{run_id}/model",
        "run_id": run_id,
        "description": given.description,
        "tags": tags,
    }
    made = client.send("POST", f"{API}/model-versions/create", body=body).json()["model_version"]
    size_bytes = sum(each.size for each in found.values())
    say(f"{given.model}@{made['version']}: {len(found)} files, {size_bytes:,} bytes")
    return 0


def _download(given: argparse.Namespace) -> int:
    client, folder = client_of(given), Path(given.to)
    version = client.get(f"/models/{given.model}/versions/{given.version}")
    address = f"models/{given.model}/{version['version']}"
    transfers = [
        files.Transfer(f"{address}/{path}", files.below(folder, path), blob["size"], blob["sha256"])
        for path, blob in version["files"].items()
    ]
    files.fetch(client, transfers, label=f"{given.model}@{version['version']}")
    say(f"{given.model}@{version['version']}: {len(transfers)} files in {folder}")
    return 0


def _ensure(client: Client, model: str) -> None:
    """Make the model if there is none of that name."""
    try:
        client.get(f"/models/{model}")
    except Refused as refused:
        if refused.status != HTTPStatus.NOT_FOUND:
            raise
        client.send("POST", f"{API}/registered-models/create", body={"name": model})


@contextmanager
def _uploading(client: Client, model: str) -> Iterator[str]:
    """A run that receives the files, and ends as the block does: a version says where its files came from."""
    begun = {"experiment_id": _DEFAULT_EXPERIMENT, "run_name": f"register {model}"}
    run_id: str = client.send("POST", f"{API}/runs/create", body=begun).json()["run"]["info"]["run_id"]
    try:
        yield run_id
    except BaseException:
        with suppress(Refused, Unreachable):  # the error that is on its way says more
            client.send("POST", f"{API}/runs/update", body={"run_id": run_id, "status": "FAILED"})
        raise
    client.send("POST", f"{API}/runs/update", body={"run_id": run_id, "status": "FINISHED"})


def _tag(text: str) -> dict[str, str]:
    name, equals, content = text.partition("=")
    if not (name and equals):
        raise UsageError(f"{text!r} is no tag; write NAME=VALUE")
    return {"key": name, "value": content}
