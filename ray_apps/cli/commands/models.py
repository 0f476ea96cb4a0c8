"""`toque models` and `toque prompts`: versions with their approvals, signatures, record and prompts, and which is live.

What signs and verifies stays on this machine: the private key, and the judgement. `registry` is imported by what needs it: it
brings the tables, a third of a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toque.ray_apps.cli.arguments import (
    MODEL,
    VERSION,
    Commands,
    Given,
    add,
    arg,
    group,
    limit,
    read_file,
    read_json,
)
from toque.ray_apps.cli.client import call
from toque.ray_apps.cli.commands import model_files
from toque.ray_apps.cli.errors import Failed, UsageError
from toque.ray_apps.cli.names import ask
from toque.ray_apps.cli.output import (
    Column,
    chosen,
    columns,
    facts,
    listing,
    message,
    newest_first,
    see_page,
    table,
)

if TYPE_CHECKING:
    from toque.registry.access.signing import Binding


_KEY = arg("--key FILE", "PEM file of an elliptic-curve private key", required=True)
_PASSWORD = arg("--password-file FILE", "file with the key's password")
_PUBLIC = arg("--public-key FILE", "PEM file of the signer's public key", required=True)
_SAVE = arg("--save FILE", "write the signature there, as `model_signing verify key` reads it")
_SET = arg(
    "--set JSON",
    'the new policy, as in {"guarded": ["champion"], "approvals": 1, "gates": ["offline"]}, @file or -',
)
_FILE = arg("file", "the prompt, as JSON or YAML")
_BASE = arg("--base VERSION", "version or alias that gives weights and settings (default: the champion)")
_DESCRIPTION = arg("--description", "what is new in it, for its card", default="")


def register(commands: Commands) -> None:
    """Add the commands on models and their versions, and on prompts."""
    models = group(commands, "models", "List, show, register, approve, sign, promote, download models.")
    add(models, "list", _list, limit(100))
    add(models, "show", _show, MODEL, limit())
    model_files.register(models)
    add(models, "policy", _policy, MODEL, _SET)
    add(models, "origins", _origins, MODEL, arg("version N", "number of a version", type=int))
    add(models, "sign", _sign, MODEL, VERSION, _KEY, _PASSWORD)
    add(models, "verify", _verify, MODEL, VERSION, _PUBLIC, _SAVE)
    prompts = group(commands, "prompts", "Register, list and compare prompts of language models.")
    add(prompts, "register", _register, MODEL, _FILE, _BASE, _DESCRIPTION)


def _list(given: Given) -> None:
    """List the models, the newest first."""
    found = newest_first(given.client.get("/models"))
    listing(given.output, _MODELS, found, empty="there are no models", limit=given.limit)


def _show(given: Given) -> None:
    """Show a model's versions, the newest first."""
    aliases = given.client.get(f"/models/{given.model}")["aliases"]
    rows = [
        each | {"aliases": [name for name, number in aliases.items() if number == each["version"]]}
        for each in reversed(given.client.get(f"/models/{given.model}/versions"))
    ]
    listing(given.output, _VERSIONS, rows, empty=f"{given.model} has no version", limit=given.limit)
    see_page(given.output, given.client.page("models", given.model))


def _gates(version: dict[str, Any]) -> list[str]:
    return [
        f"{name} {'passed' if gate['passed'] else 'failed'}{'' if gate.get('demand') else ' by hand'}"
        for name, gate in version["gates"].items()
    ]


def _approvers(version: dict[str, Any]) -> list[str]:
    return [
        f"{one['actor']}{' automatically' if one.get('automatic') else ''}"
        for one in version["approvals"]
        if one["approved"]
    ]


def _sign(given: Given) -> None:
    """Sign a version's files and serving tags in the OpenSSF model-signing format."""
    from toque.registry import RegistryError
    from toque.registry.access import signing

    key = read_file(given.key)
    password = read_file(given.password_file).strip() if given.password_file else None
    path = f"/models/{given.model}/versions/{given.version}"
    version = given.client.get(path)
    try:
        bundle = signing.sign(_binding(version), _digests(version), key, password=password)
        public = signing.public_of(key, password=password)
    except RegistryError as error:
        raise UsageError(f"{given.key}: {error}") from error
    given.client.send("POST", f"{path}/signatures", body={"bundle": bundle.decode(), "public_key": public})
    _print(given, signing.fingerprint(public))


def _verify(given: Given) -> None:
    """Check a version's signature with a public key, here."""
    from toque.registry import RegistryError
    from toque.registry.access import signing

    public = read_file(given.public_key)
    path = f"/models/{given.model}/versions/{given.version}"
    try:
        signer = signing.fingerprint(public)
    except RegistryError as error:
        raise UsageError(f"{given.public_key}: {error}") from error
    version = given.client.get(path)
    bundle = given.client.get(f"{path}/signatures/{signer}")["bundle"].encode()
    try:
        signing.check(bundle, _digests(version), public)
        signing.check_binding(bundle, _binding(version), required=_is_bound(version, bundle))
    except RegistryError as error:
        raise Failed(f"{given.model}@{given.version}: {error}") from error
    if given.save:
        Path(given.save).write_bytes(bundle)
    _print(given, signer)


def _print(given: Given, signer: str) -> None:
    text = f"{given.model}@{given.version} is signed by the key {signer}"
    message(given.output, text, {"model": given.model, "version": given.version, "signer": signer})


def _binding(version: dict[str, Any]) -> Binding:
    """What a signature of this version is bound to: as the platform describes it, which signs or is checked here."""
    from toque.registry.access.signing import Binding
    from toque.registry.models.versions import serving_tags

    return Binding(version["model"], version["version"], serving_tags(version["tags"]))


def _is_bound(version: dict[str, Any], bundle: bytes) -> bool:
    """Whether a bundle was recorded as bound to its version; earlier releases recorded others."""
    import hashlib  # late: OpenSSL, for a signature alone

    digest = hashlib.sha256(bundle).hexdigest()
    return any(mark.get("bound", False) for mark in version["signatures"] if mark["sha256"] == digest)


def _digests(version: dict[str, Any]) -> dict[str, str]:
    return {path: blob["sha256"] for path, blob in version["files"].items()}


def _policy(given: Given) -> None:
    """Show, or set, what a version needs before it may go live."""
    path = f"/models/{given.model}/policy"
    if given.set is None:
        policy = given.client.get(path)
    else:
        policy = given.client.send("PUT", path, body=read_json(given.set)).json()
    facts(given.output, [Column(name.replace("_", " "), name, text=True) for name in policy], policy)


def _origins(given: Given) -> None:
    """Show the data that a version was made from: training sets, feature tables and sources, with what was read of each."""
    asked = {"model": given.model, "version": given.version}
    found = call(given.client, "version_origins", asked)
    rows = [row for each in found["datasets"] for row in _origin_rows(each)]
    empty = f"{given.model}@{given.version} was registered without its data"
    table(chosen(given.output), _ORIGINS, rows, whole=found, remark="" if rows else empty)


def _origin_rows(dataset: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for a training set, for each table that it was joined from, and for each source of those."""
    name, of = _named(dataset["table"]), dataset["training_set"]
    if of is None:
        yield {"kind": "table", "name": name}
        return
    yield {"kind": "training set", "name": name, "rows": of["rows"], "first": of["start"], "last": of["end"]}
    yield {"kind": "entities", "name": _named(of["entities"])}
    for view, snapshot in of["tables"].items():
        yield {"kind": "feature view", "name": view, "read": _named(snapshot)}
    for name, source in of["sources"].items():
        figures = {each: source[each] for each in ("rows", "first", "last", "load")}
        yield {"kind": "batch source", "name": name, "read": _shown(source["read"])} | figures


def _named(snapshot: dict[str, Any]) -> str:
    return f"{snapshot['name']}@{snapshot['version']}"


def _shown(pieces: list[str]) -> str:
    more = len(pieces) - 3
    return ", ".join(pieces[:3]) + (f" and {more} more" if more > 0 else "")


def _register(given: Given) -> None:
    """Register a prompt as the next version of a model."""
    prompt = _read(Path(given.file))
    made = ask(given, "register_prompt", prompt=prompt, base=given.base, description=given.description)
    message(given.output, f"{made['model']}@{made['version']}: prompt on version {made['parent']}", made)


def _read(path: Path) -> Any:
    """Read a prompt from a file of JSON or YAML. Raises: Failed."""
    import yaml  # late: few commands need it

    try:
        text = path.read_text()
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Failed(f"{path}: {error}") from error


_MODELS = columns(
    "model: name | versions: versions as count | aliases: aliases as pairs | created: created_at | description",
    wide="tags: tags as pairs",
    texts="description",
)
_VERSIONS = columns(
    "version | status | aliases | gates | approved by | author | created: created_at",
    wide="metrics | files: files as count | bytes | run: lineage.run | tags: tags as pairs",
    texts="gates | approved by",
    values={
        "gates": _gates,
        "approved by": _approvers,
        "bytes": lambda row: sum(each["size"] for each in row["files"].values()),
    },
)
_ORIGINS = columns(
    "kind | name | rows: rows? | first: first? | last: last? | load: load? | read: read?", texts="read"
)
