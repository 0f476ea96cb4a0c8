"""`toque access token`, `workspace`, `audit-log`, `erase`, `erasures` and `retention`: access, and what is stored about people."""

from __future__ import annotations

from typing import Any

from toque.ray_apps.cli.arguments import Argument, Commands, Given, add, arg, flag, group, limit, repeatable
from toque.ray_apps.cli.client import call
from toque.ray_apps.cli.errors import UsageError
from toque.ray_apps.cli.output import columns, facts, listing, message, newest_first, table

ROLES = ("viewer", "caller", "labeller", "operator", "approver", "admin")
TIERS = ("flex", "default", "priority")
_EARLIER = ("predictor",)  # name of caller in earlier releases
_NAME = arg("name", "whose it is; stands in every journal entry made with it")
_ROLE = arg(
    "role",
    f"what it may do: {', '.join(ROLES)}; may be left out beside --grant",
    nargs="?",
    choices=(*ROLES, *_EARLIER),
    metavar="role",
)
_OF_WORKSPACE = arg(
    "--workspace NAME", "where the role counts; '*': everywhere (default: here)", dest="in_workspace"
)
_OF_MODEL = arg("--model NAME", "the only model that the role counts for (default: all)", dest="of_model")
_GRANTS = repeatable("--grant ROLE:WORKSPACE[:MODEL]", "a further role, as in viewer:payments", dest="grants")
_EXPIRES = arg("--expires TIME", "ISO time with offset, or never (default: in 90 days)")
_TOKEN = arg("token name", "whose token, as `toque access token list` shows it")
_WORKSPACE = arg("chosen name", "name of the workspace, as `toque access workspace list` shows it")
_NEW_WORKSPACE = arg("new name", "1 to 63 lower-case letters, digits and '-'")
_DESCRIPTION = arg("--description TEXT", "what the workspace is for")
_LIMITS: tuple[Argument, ...] = (
    arg(
        "--rate N",
        "requests a second that it may send to each replica of a door",
        type=float,
        dest="rate_per_s",
    ),
    arg("--max-in-flight N", "its requests at the same time at each replica of a door", type=int),
    arg(
        "--tokens-per-minute N",
        "tokens of language models that it may use at each replica of their door",
        type=int,
    ),
    arg(
        "--service-tier TIER",
        "the highest that its requests to language models may ask for: flex, default or priority (default: default)",
        choices=TIERS,
    ),
)
_ACTOR = arg("--actor NAME", "only what this caller did or was refused")
_SINCE = arg("--since TIME", "ISO time with offset (default: a week ago)")
_UNTIL = arg("--until TIME", "ISO time with offset (default: now)")
_KIND = arg("--kind", "only entries of this kind", choices=["refusal", "access", "model"])
_EVERYWHERE = flag("--everywhere", "of all workspaces; takes an admin of all")
_QUEUE: tuple[Argument, ...] = (
    arg(
        "--share N",
        "weight of its experiments among the workspaces, in the fair share of the cards",
        type=float,
    ),
    arg("--cpus N", "CPUs that its experiments may take at a time", type=float),
    arg("--gpus N", "GPUs that its experiments may take at a time", type=float),
    arg("--at-once N", "its experiments that may run at a time", type=int),
)
_ENTITY = repeatable("--entity KEY=VALUE", "join key of features, and its value")
_UNIT = arg("--unit U", "unit of the traffic split, as in the predictions' `unit`")
_TEXT = flag(
    "--text", "erase texts, too, that mention a value of 8 characters or more, whoever they are about"
)
_DRY_RUN = flag("--dry-run", "list what would go, why, and whose it is; erase nothing")
_NOTHING = "no table has a row of it; what was logged in the last seconds is not searched by a dry run"


def register(commands: Commands) -> None:
    """Add the commands on tokens, workspaces and the audit log, and on what is stored about people."""
    access = group(
        commands, "access", "Create and revoke tokens and workspaces, and list who did and was refused what."
    )
    tokens = group(access, "token", "Create, list and revoke bearer tokens.")
    narrowed = (_OF_WORKSPACE, _OF_MODEL, _GRANTS, _EXPIRES)
    add(tokens, "create", _create, _NAME, _ROLE, *narrowed, *_LIMITS)
    add(tokens, "list", _list, limit(100))
    add(tokens, "revoke", _revoke, _TOKEN)
    add(access, "log", _audit_log, _ACTOR, _SINCE, _UNTIL, _KIND, _EVERYWHERE, limit(100))
    workspaces = group(access, "workspace", "Create, list and change the workspaces of teams.")
    add(workspaces, "create", _create_workspace, _NEW_WORKSPACE, _DESCRIPTION, *_LIMITS, *_QUEUE)
    add(workspaces, "list", _list_workspaces, limit(None))
    add(workspaces, "set", _change_workspace, _WORKSPACE, _DESCRIPTION, *_LIMITS, *_QUEUE)
    privacy = group(
        commands, "privacy", "Erase people's data, list what was erased, and set how long data is kept."
    )
    add(privacy, "erase", _erase, _ENTITY, _UNIT, _TEXT, _DRY_RUN)
    group(privacy, "retention", "Show and set how long data about people is kept.")


def _create(given: Given) -> None:
    """Make a token and print it, this once."""
    if given.role is None and not given.grants:
        raise UsageError("what may it do? give a role, or --grant ROLE:WORKSPACE")
    body = {
        "name": given.name,
        "role": given.role,
        "workspace": given.in_workspace,
        "model": given.of_model,
        "grants": given.grants,
        "expires_at": given.expires,
        **_bounds(given),
    }
    made = given.client.send("POST", "/tokens", body=_given(body)).json()
    message(given.output, made["token"], made)


def _list(given: Given) -> None:
    """List the tokens with their grants and last use, without their secrets."""
    found = newest_first(given.client.get("/tokens"))
    listing(given.output, _TOKENS, found, empty="there are no tokens", limit=given.limit)


def _revoke(given: Given) -> None:
    """End a token for good."""
    given.client.send("DELETE", f"/tokens/{given.token}")
    text = f"revoked; {given.token} is refused everywhere within two seconds"
    message(given.output, text, {"name": given.token, "revoked": True})


def _create_workspace(given: Given) -> None:
    """Make a workspace, a part of the platform with models, data and runs of its own."""
    body = {"name": given.new, "description": given.description, **_bounds(given)}
    made = given.client.send("POST", "/workspaces", body=_given(body)).json()
    message(given.output, f"created; work in it with `toque --workspace {made['name']} …`", made)


def _list_workspaces(given: Given) -> None:
    """List the workspaces that you have a grant in."""
    found = given.client.get("/workspaces")
    listing(given.output, _WORKSPACES, found, empty="there is no workspace for you", limit=given.limit)


def _change_workspace(given: Given) -> None:
    """Change a workspace's description, limits or share of the queue; what is left out stays."""
    path, changed = f"/workspaces/{given.chosen}", _bounds(given)
    if any(changed.values()):  # each is replaced as a whole
        before = given.client.get(path)
        changed = {name: fields and before[name] | fields for name, fields in changed.items()}
    body = _given({"description": given.description, **changed})
    made = given.client.send("PATCH", path, body=body).json()
    message(given.output, "changed", made)


def _audit_log(given: Given) -> None:
    """List who was refused what, and who changed access and models, the newest first."""
    found = given.client.get(
        "/audit",
        actor=given.actor,
        since=given.since,
        until=given.until,
        kind=given.kind,
        everywhere=True if given.everywhere else None,
        limit=given.limit + 1,
    )
    empty = "nothing was refused or changed"
    if not given.everywhere:  # a caller without a valid token is of no workspace
        empty += " in this workspace; --everywhere shows all, and callers whose token is not valid"
    listing(given.output, _AUDIT, found, empty=empty, limit=given.limit)


def _bounds(given: Given) -> dict[str, dict[str, Any] | None]:
    """Limits and share of the queue that the command line gave, each None where it gave nothing of them."""
    fields = {
        "limits": ("rate_per_s", "max_in_flight", "tokens_per_minute", "service_tier"),
        "queue": ("share", "cpus", "gpus", "at_once"),
    }
    return {
        part: _given({name: vars(given).get(name) for name in names}) or None
        for part, names in fields.items()
    }


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {name: content for name, content in body.items() if content not in (None, [])}


def _erase(given: Given) -> int:
    """Erase an entity or a unit from everything that is stored, and print the certificate; for admins."""
    entity = dict(_pair(each) for each in given.entity)
    if not entity and given.unit is None:
        raise UsageError("nothing to erase: give --entity KEY=VALUE, --unit U, or both")
    subject = {"entity": entity, "unit": given.unit, "text": given.text}
    if given.dry_run:
        preview = call(given.client, "preview_erasure", subject)
        table(
            given.output,
            _PREVIEW,
            _places(preview),
            whole=preview,
            remark="" if preview["tables"] else _NOTHING,
        )
        return 1 if preview["left"] else 0
    certificate = call(given.client, "erase_subject", subject)
    facts(given.output, _CERTIFICATE, certificate)
    return 1 if certificate["left"] or certificate["silent_writers"] else 0


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"--entity {text!r} is not KEY=VALUE")
    return name, value


def _places(preview: Any) -> list[dict[str, Any]]:
    """List the tables and objects of a preview, one a row; what could not be searched comes last."""
    tables = [
        {
            "place": name,
            "goes": f"{found['rows']} rows",
            "stays": f"{found['staying']} rows",
            "why": [f"{reason}: {rows}" for reason, rows in found["why"].items()],
            "whose": found["whose"],
        }
        for name, found in preview["tables"].items()
    ]
    objects = [
        {"place": key, "goes": "" if "cannot" in why else "the object", "why": why}
        for key, why in preview["objects"].items()
    ]
    mention = {"stays": "the object", "why": "mentions it in its text; --text takes it"}
    staying = [{"place": key, **mention} for key in preview["staying"]]
    left = [{"place": "", "why": reason} for reason in preview["left"]]
    return tables + objects + staying + left


_TOKENS = columns(
    "name | grants | made by: created_by | made: created_at | last use: last_used_at | expires: expires_at"
    " | revoked: revoked_at",
    wide="requests/s: limits.rate_per_s | in flight: limits.max_in_flight"
    " | tokens/min: limits.tokens_per_minute? | tier: limits.service_tier? | ID: id",
)
_AUDIT = columns(
    "at | kind | who | what | status | times: count | workspace | detail",
    wide="address: client",
    texts="detail",
)
_WORKSPACES = columns(
    "name | description | requests/s: limits.rate_per_s | in flight: limits.max_in_flight",
    wide="share: queue.share | CPUs: queue.cpus | GPUs: queue.gpus | at once: queue.at_once | made by: created_by | made: created_at",
    texts="description",
)
_PREVIEW = columns("place | goes: goes? | stays: stays? | why | whose: whose?", texts="why")
_CERTIFICATE = columns(
    "certificate: id | by: requested_by | holds until: holds_until | completed: completed_at"
    " | tables: tables as {key}: {rows} rows | others: removed as pairs | affected training sets: training_sets as {name}@{version}"
    " | affected models: models as {model}@{version} | left | silent writers: silent_writers"
)
