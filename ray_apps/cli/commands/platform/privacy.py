"""`toque erase`, `erasures` and `retention`: what is stored about people, and for how long."""

from __future__ import annotations

import re
from typing import Any

from toque.ray_apps.cli.arguments import arg, flag, limit, repeatable
from toque.ray_apps.cli.client import call
from toque.ray_apps.cli.command import Commands, Given, add, group
from toque.ray_apps.cli.errors import UsageError
from toque.ray_apps.cli.output import columns, facts, listing, newest_first, table

_DAYS = {"d": 1.0, "w": 7.0, "y": 365.0}
_KINDS = ("predictions", "labels", "invocations", "reports")
_ENTITY = repeatable("--entity KEY=VALUE", "join key of features, and its value")
_UNIT = arg("--unit U", "unit of the traffic split, as in the predictions' `unit`")
_TEXT = flag(
    "--text", "erase texts, too, that mention a value of 8 characters or more, whoever they are about"
)
_DRY_RUN = flag("--dry-run", "list what would go, why, and whose it is; erase nothing")


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    add(commands, "erase", _erase, _ENTITY, _UNIT, _TEXT, _DRY_RUN)
    add(commands, "erasures", _erasures, limit())
    actions = group(commands, "retention", "Show and set how long data about people is kept.")
    add(actions, "show", _show)
    kinds = [
        arg(f"--{kind} AGE", f"how long {kind} are kept, as in 90d, 12w or 1y (default: for ever)")
        for kind in _KINDS
    ]
    add(actions, "set", _set, *kinds)


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


def _erasures(given: Given) -> None:
    """List the certificates of erasures; for admins."""
    found = newest_first(call(given.client, "list_erasures", {}), "completed_at")
    listing(given.output, _ERASURES, found, empty="nothing was erased yet", limit=given.limit)


def _show(given: Given) -> None:
    """Show how long each kind of data is kept."""
    facts(given.output, _RETENTION, call(given.client, "retention", {}))


def _set(given: Given) -> None:
    """Set how long each kind of data is kept, in place of the setting before; for admins."""
    ages = {kind: getattr(given, kind) for kind in _KINDS}
    keep = {kind: None if age is None else _days(kind, age) for kind, age in ages.items()}
    facts(given.output, _RETENTION, call(given.client, "set_retention", keep))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"--entity {text!r} is not KEY=VALUE")
    return name, value


def _days(kind: str, age: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([dwy])", age)
    if found is None:
        raise UsageError(f"--{kind} {age!r} is no age; write days, weeks or years, as in 90d, 12w or 1y")
    return float(found[1]) * _DAYS[found[2]]


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
        {"place": key, "goes": "" if "cannot" in why else "the object", "stays": "", "why": why, "whose": ""}
        for key, why in preview["objects"].items()
    ]
    staying = [
        {
            "place": key,
            "goes": "",
            "stays": "the object",
            "why": "mentions it in its text; --text takes it",
            "whose": "",
        }
        for key in preview["staying"]
    ]
    left = [{"place": "", "goes": "", "stays": "", "why": reason, "whose": ""} for reason in preview["left"]]
    return tables + objects + staying + left


def _rows(certificate: Any) -> str:
    tables = certificate["tables"]
    return ", ".join(f"{name}: {tables[name]['rows']} rows" for name in sorted(tables)) or "none"


def _others(certificate: Any) -> str:
    return (
        ", ".join(f"{number} {place}" for place, number in sorted(certificate["removed"].items())) or "none"
    )


def _training_sets(certificate: Any) -> list[str]:
    return [f"{each['name']}@{each['version']}" for each in certificate["training_sets"]]


def _models(certificate: Any) -> list[str]:
    return [f"{each['model']}@{each['version']}" for each in certificate["models"]]


def _kept(kind: str) -> Any:
    return lambda setting: "for ever" if setting[kind] is None else f"{setting[kind]:g} days"


_PREVIEW = columns("place | goes | stays | why | whose", texts="why")
_NOTHING = "no table has a row of it; what was logged in the last seconds is not searched by a dry run"
_CERTIFICATE = columns(
    "certificate: id | by: requested_by | holds until: holds_until | completed: completed_at | tables | others | "
    "affected training sets | affected models | left | silent writers: silent_writers",
    values={
        "tables": _rows,
        "others": _others,
        "affected training sets": _training_sets,
        "affected models": _models,
    },
)
_ERASURES = columns("id | by: requested_by | completed: completed_at | tables", values={"tables": _rows})
_RETENTION = columns(" | ".join(_KINDS), values={kind: _kept(kind) for kind in _KINDS})
