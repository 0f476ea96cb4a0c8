"""`toque models register` and `download`: a version's files, to the platform and from it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toque.ray_apps.cli import transfer as files
from toque.ray_apps.cli.arguments import (
    FOLDER_HERE,
    MODEL,
    VERSION_OR_ALIAS,
    Commands,
    Given,
    add,
    arg,
    read_pair,
    repeatable,
)
from toque.ray_apps.cli.client import Client
from toque.ray_apps.cli.errors import Failed, Refused, Unreachable, UsageError
from toque.ray_apps.cli.names import MLFLOW
from toque.ray_apps.cli.output import message, note

if TYPE_CHECKING:
    from toque.registry.store.blobs import LocalFile

_DEFAULT_EXPERIMENT = "0"
_ALLOW_CODE = "toque.allow_code"
SIGNATURE_FILE = "signature.json"
_MODEL_FILES = frozenset(
    {"model.pt2", "model.onnx", "model.skops", "model.ubj", "model.txt", "python_model.json"}
)

_NAME = arg("name model", "name of the model; a new one is made")
_SOURCE = arg("source", "the folder, or one file")
_DESCRIPTION = arg("--description", "what the version is, for its card", default="")
_TAG = repeatable("--tag NAME=VALUE", "a tag of the version")
_CODE = repeatable("--allow-code PATH", "a file that may execute code and is accepted all the same")
_SIGNATURE = arg(
    "--signature FILE", "JSON of the model's tensors in and out (default: what its file says)", default=""
)
_EXAMPLE = arg(
    "--example FILE",
    "JSON rows by column, which tell numbers from texts and warm replicas up",
    default="",
)


def register(models: Commands) -> None:
    """Add the commands of this module to the group of models."""
    add(models, "register", _register, _NAME, _SOURCE, _DESCRIPTION, _TAG, _CODE, _SIGNATURE, _EXAMPLE)
    add(models, "download", _download, MODEL, VERSION_OR_ALIAS, FOLDER_HERE)


def _register(given: Given) -> None:
    """Register the files of a folder as the next version."""
    client, tags = given.client, [read_pair(text, "NAME=VALUE, as in --tag team=ops") for text in given.tag]
    if given.allow_code:
        tags.append((_ALLOW_CODE, ",".join(given.allow_code)))
    found = files.local(given.source)
    _require_accepted(found, given.allow_code)
    policy = _ensure(client, given.name)
    with (
        _signed(given, found, policy.get("trusted_types", [])) as signed,
        _uploading(client, given.name) as run_id,
    ):
        files.send(client, files.outgoing(signed, f"runs/{run_id}/model"), label=given.name)
    body = {
        "name": given.name,
        "source": f"runs:/{run_id}/model",
        "run_id": run_id,
        "description": given.description,
        "tags": [{"key": name, "value": content} for name, content in tags],
    }
    made = client.send("POST", f"{MLFLOW}/model-versions/create", body=body).json()["model_version"]
    size_bytes = sum(each.size for each in found.values())
    message(given.output, f"{given.name}@{made['version']}: {len(found)} files, {size_bytes} bytes", made)


def _require_accepted(found: Mapping[str, LocalFile], accepted: list[str]) -> None:
    """Refuse files that can execute code before they are sent; the platform looks again. Raises: Failed."""
    from toque.registry.models.code_files import (
        executable_files,  # late: it brings the tables, a third of a second
    )

    code = [path for path in executable_files(found) if path not in accepted]
    if code:
        options = " ".join(f"--allow-code {path}" for path in code)
        raise Failed(
            f"{', '.join(code)} can execute code when loaded, or is of no format that is known to be data; store safetensors or "
            f"an exported graph, or accept it: {options}"
        )


def _download(given: Given) -> None:
    """Get a version's files, digests checked."""
    version = given.client.get(f"/models/{given.model}/versions/{given.version}")
    folder, address = Path(given.to), f"models/{given.model}/{version['version']}"
    transfers = [
        files.Transfer(f"{address}/{path}", files.below(folder, path), blob["size"], blob["sha256"])
        for path, blob in version["files"].items()
    ]
    label = f"{given.model}@{version['version']}"
    files.fetch(given.client, transfers, label=label)
    message(
        given.output, f"{label}: {len(transfers)} files in {folder}", [str(each.here) for each in transfers]
    )


@contextmanager
def _signed(
    given: Given, found: Mapping[str, LocalFile], trusted_types: Sequence[str]
) -> Iterator[dict[str, LocalFile]]:
    """Add a signature to files that hold a model: the given one, or what the model says of itself; weights get their name.

    Files without a model that could be served stay as they are. Raises: Failed if nothing tells a model's signature.
    """
    weights = _generative(found)
    if weights is None and (not _MODEL_FILES & set(found) or SIGNATURE_FILE in found):
        if given.signature or given.example:
            raise UsageError(
                f"{given.source} is no folder with one of {sorted(_MODEL_FILES)}, or is signed already"
            )
        note(f"{given.source} holds no model that is served, or its signature already: it goes as it is")
        yield dict(found)
        return
    from toque.registry.store.blobs import scan

    with tempfile.TemporaryDirectory(prefix="toque-signed-") as folder:
        source, path, sent = Path(given.source), Path(folder) / SIGNATURE_FILE, dict(found)
        if weights is not None:
            from toque.functions.generative import CHAT, WEIGHTS  # late: few commands need it

            path.write_text(CHAT.model_dump_json(indent=1))
            sent[WEIGHTS] = sent.pop(weights)
        else:
            if source.is_file():
                shutil.copyfile(source, Path(folder) / source.name)
            path.write_text(_signature(given, source if source.is_dir() else Path(folder), trusted_types))
        yield {**sent, **scan(Path(folder))}


def _generative(found: Mapping[str, LocalFile]) -> str | None:
    """Path of the weights, if the files are a language model's: `weights.gguf`, or the only GGUF file there is."""
    files = [path for path in found if path.endswith(".gguf") and path != "adapter.gguf"]
    return "weights.gguf" if "weights.gguf" in files else files[0] if len(files) == 1 else None


def _signature(given: Given, folder: Path, trusted_types: Sequence[str]) -> str:
    """Signature of the model as JSON. Raises: Failed, naming what would tell it."""
    from toque.functions.model_formats.derive import (  # late: the libraries of models
        derive_signature,
        read_rows,
    )
    from toque.functions.model_formats.errors import TrainingError
    from toque.registry.models import Signature

    try:
        if given.signature:
            return Signature.model_validate_json(Path(given.signature).read_bytes()).model_dump_json(indent=1)
        rows = read_rows(Path(given.example)) if given.example else []
        return derive_signature(folder, rows, trusted_types=trusted_types).model_dump_json(indent=1)
    except (TrainingError, ValueError, OSError) as error:
        raise Failed(f"{given.source}: {error}") from error


def _ensure(client: Client, model: str) -> dict[str, Any]:
    """Make the model if there is none of that name; returns its policy."""
    try:
        policy: dict[str, Any] = client.get(f"/models/{model}/policy")
    except Refused as refused:
        if refused.status != HTTPStatus.NOT_FOUND:
            raise
        client.send("POST", f"{MLFLOW}/registered-models/create", body={"name": model})
        return {}
    return policy


@contextmanager
def _uploading(client: Client, model: str) -> Iterator[str]:
    """A run that receives the files, and ends as the block does: a version says where its files came from."""
    begun = {"experiment_id": _DEFAULT_EXPERIMENT, "run_name": f"register {model}"}
    run_id: str = client.send("POST", f"{MLFLOW}/runs/create", body=begun).json()["run"]["info"]["run_id"]
    try:
        yield run_id
    except BaseException:
        with suppress(Refused, Unreachable):  # the error that is on its way says more
            client.send("POST", f"{MLFLOW}/runs/update", body={"run_id": run_id, "status": "FAILED"})
        raise
    client.send("POST", f"{MLFLOW}/runs/update", body={"run_id": run_id, "status": "FINISHED"})
