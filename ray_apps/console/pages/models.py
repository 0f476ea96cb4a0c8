"""Pages of models and versions: lists, what waits for an approver, one, two compared, and the buttons of a version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import Path, Query
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.responses import Response

from toque.functions.pages import Node
from toque.functions.pages.charts import draw_columns
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import Approver, Entry, Operator, Sent, Viewer, pages_router

router = pages_router()
ENTRY = Entry("Models", "models")
ROWS = 50
_ENTRIES = 20
_METRICS = 3
_WORDS = {
    ("review", True): "approved",
    ("review", False): "rejected",
    ("gate", True): "recorded a pass of gate",
    ("gate", False): "recorded a failure of gate",
    ("alias", None): "pointed the alias",
    ("rollback", None): "rolled back the alias",
    ("version-created", None): "registered",
    ("traffic", None): "split the traffic",
    ("policy", None): "set the policy",
    ("model-created", None): "created the model",
    ("model-deleted", None): "deleted the model",
}
_LONGEST: Final = 30_000  # characters
_MARKS: Final = "[*_~`"
_MOST_MARKS: Final = 2_000
_LONGEST_PLAIN: Final = 500_000
_PARSER = MarkdownIt("js-default", {"html": False, "linkify": False}).disable("image")
_PARSER.validateLink = lambda url: url.startswith(("https://", "http://", "mailto:"))  # type: ignore[method-assign]
Number = Annotated[int, Path(ge=1, le=2**31)]
Chosen = Annotated[list[int], Query(max_length=20)]


@router.post("/models/{model}/versions/{version}/approve")
async def approve(page: Approver, model: str, version: Number, form: Sent) -> Response:
    """Approve a version in the viewer's name."""
    body = {"comment": form.get("comment", ""), "accept_code": form.all("accept_code")}
    return await _reviewed(page, model, version, "approve", body, "approved")


@router.post("/models/{model}/versions/{version}/reject")
async def reject(page: Approver, model: str, version: Number, form: Sent) -> Response:
    """Reject a version in the viewer's name."""
    return await _reviewed(page, model, version, "reject", {"comment": form.get("comment", "")}, "rejected")


@router.get("/models/{model}/compare")
async def compare_versions(page: Viewer, model: str, version: Chosen = []) -> Response:  # noqa: B006  # read only
    """Show the figures of some versions side by side."""
    chosen = list(dict.fromkeys(version))
    found = await asyncio.gather(*(page.api.get(_path(page, model, each)) for each in chosen))
    return await page.render(
        "compare.html",
        model=model,
        versions=found,
        metrics=_rows(found, lambda each: each["metrics"]),
        gates=_rows(found, _gate_figures),
        tags=_rows(found, lambda each: each["tags"]),
        made_from=_rows(found, _sources),
    )


@router.get("/models/{model}/versions/{version}")
async def show_version(page: Viewer, model: str, version: Number) -> Response:
    """Show one version: what it lacks, gates with their figures, approvals, lineage, files and card."""
    path = _path(page, model, version)
    found, unmet, card, summary = await asyncio.gather(
        page.api.get(path),
        page.api.get(f"{path}/unmet"),
        page.api.get(f"{path}/card"),
        page.api.get(f"/models/{page.quoted(model)}"),
    )
    aliases = [name for name, number in summary["aliases"].items() if number == version]
    run = found["lineage"]["run"]
    made_by = run if run and await page.api.find(f"/runs/{page.quoted(run)}") else None
    arms = [arm for arm in (summary["traffic"] or {"arms": []})["arms"] if arm["version"] == version]
    return await page.render(
        "version.html",
        live=(f"models/{model}",),
        model=model,
        version=found,
        unmet=unmet,
        card=await asyncio.to_thread(render_markdown, card["card"]),
        aliases=aliases,
        arms=arms,
        champion=summary["aliases"].get("champion"),
        gates={name: _figures(gate["details"]) for name, gate in found["gates"].items()},
        made_by=made_by,
        lineage=draw_lineage(found, aliases, arms, page.link, run_is_known=made_by is not None),
    )


@router.post("/models/{model}/versions/{version}/promote")
async def promote(page: Operator, model: str, version: Number, form: Sent) -> Response:
    """Make a version the champion, if the champion is still the one that the page showed."""
    expected = form.get("expected", "")
    body: dict[str, Any] = {"version": version, "reason": form.get("reason", "")}
    body["expected"] = int(expected) if expected.isdecimal() else None
    return await page.change(
        page.link("models", model, "versions", version),
        f"{model}@{version} is the champion.",
        "POST",
        f"/models/{page.quoted(model)}/promote",
        body,
    )


@router.get("/models")
async def list_models(page: Viewer, after: Annotated[str | None, Query(max_length=128)] = None) -> Response:
    """List the models by name, a page at a time."""
    models = await page.api.get("/models", limit=ROWS, after=after)
    following = models[-1]["name"] if len(models) == ROWS else None
    return await page.render(
        "models.html", live=("models/*",), models=models, after=after, following=following
    )


@router.get("/approvals")
async def list_approvals(
    page: Viewer, after: Annotated[str | None, Query(pattern=r"^[^@]{1,128}@[0-9]{1,10}$")] = None
) -> Response:
    """List the versions that wait for an approver, by model, a page at a time."""
    waiting = await page.api.get("/approvals", limit=ROWS, after=after)
    last = waiting[-1] if len(waiting) == ROWS else None
    following = None if last is None else f"{last['model']}@{last['version']}"
    return await page.render("approvals.html", live=("models/*",), waiting=waiting, following=following)


@router.get("/models/{model}")
async def show_model(
    page: Viewer, model: str, before: Annotated[int | None, Query(ge=1, le=2**31)] = None
) -> Response:
    """Show one model: its versions, newest first, who answers, its policy and what was changed last."""
    path = f"/models/{page.quoted(model)}"
    found, versions, policy, history = await asyncio.gather(
        page.api.get(path),
        page.api.get(f"{path}/versions", limit=ROWS, before=before),
        page.api.get(f"{path}/policy"),
        page.api.get(f"{path}/history", limit=_ENTRIES),
    )
    aliases: dict[int, list[str]] = {}
    for alias, number in found["aliases"].items():
        aliases.setdefault(number, []).append(alias)
    return await page.render(
        "model.html",
        live=(f"models/{model}",),
        model=found,
        versions=versions[::-1],
        before=before,
        following=versions[0]["version"] if len(versions) == ROWS else None,
        aliases=aliases,
        metrics=list(versions[-1]["metrics"])[:_METRICS] if versions else [],
        policy=policy,
        gate_names=[gate if isinstance(gate, str) else gate["name"] for gate in policy["gates"]],
        history=[_told(entry) for entry in history[::-1]],
    )


@router.post("/models/{model}/rollback")
async def roll_back(page: Operator, model: str, form: Sent) -> Response:
    """Make the champion of before the champion again, if it is still the one that the page showed."""
    champion = form.get("expected", "")
    expected = int(champion) if champion.isdecimal() else None
    return await page.change(
        page.link("models", model),
        f"{model}: the champion is the one before version {champion} again.",
        "POST",
        f"/models/{page.quoted(model)}/aliases/champion/rollback",
        {"reason": form.get("reason", ""), "expected": expected},
    )


async def _reviewed(
    page: Page, model: str, version: int, verb: str, body: dict[str, Any], done: str
) -> Response:
    to = page.link("models", model, "versions", version)
    told = f"{model}@{version} is {done} by you."
    return await page.change(to, told, "POST", f"{_path(page, model, version)}/{verb}", body)


def _path(page: Page, model: str, version: int) -> str:
    return f"/models/{page.quoted(model)}/versions/{version}"


def _figures(details: dict[str, Any]) -> dict[str, Any]:
    """Lay a gate's details out by name: checks as a table, numbers as rows, anything else as text."""
    checks = [each for each in details.get("checks", []) if isinstance(each, dict)]
    plain = {
        name: value
        for name, value in details.items()
        if not isinstance(value, dict | list) and value not in (None, "")
    }
    groups = {
        name: value
        for name, value in details.items()
        if isinstance(value, dict) and value and all(not isinstance(each, list) for each in value.values())
    }
    return {"checks": checks, "plain": plain, "groups": groups}


def _gate_figures(version: dict[str, Any]) -> dict[str, Any]:
    return {name: "passed" if gate["passed"] else "failed" for name, gate in version["gates"].items()}


def _sources(version: dict[str, Any]) -> dict[str, Any]:
    lineage = version["lineage"]
    tables = {f"table {each['name']}": f"version {each['version']}" for each in lineage["datasets"]}
    views = {f"feature view {name}": digest[:12] for name, digest in lineage["features"].items()}
    return {"run": lineage["run"], "code": (lineage["code"] or "")[:12] or None} | tables | views


def _rows(versions: list[dict[str, Any]], of: Any) -> list[dict[str, Any]]:
    """Line up what each version has under the same name; `differs` where they do not agree."""
    columns = [of(version) for version in versions]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, [column.get(name) for column in columns]) for name in names]
    return [
        {"name": name, "values": values, "differs": any(value != values[0] for value in values)}
        for name, values in rows
        if any(value is not None for value in values)
    ]


def _told(entry: dict[str, Any]) -> dict[str, Any]:
    """Tell an entry of a model's journal in the words of `toque models history`."""
    body = entry["body"]
    version = body.get("version")
    return {
        "number": entry["number"],
        "at": entry["at"],
        "actor": entry["actor"],
        "what": _WORDS.get(
            (body.get("kind"), body.get("approved", body.get("passed"))), body.get("kind", "")
        ),
        "version": version["version"] if isinstance(version, dict) else version,
        "reason": body.get("reason") or body.get("comment") or body.get("override") or "",
        "subject": body.get("alias") or body.get("gate") or body.get("holdout") or body.get("layer") or "",
    }


def draw_lineage(
    version: dict[str, Any],
    aliases: list[str],
    arms: list[dict[str, Any]],
    link: Callable[..., str],
    *,
    run_is_known: bool = False,
) -> Markup:
    """Draw the tables and feature views that a version was made from, its run, where it answers now, and its predictions."""
    model, lineage = version["model"], version["lineage"]
    data = [Node("table", f"{each['name']}@{each['version']}") for each in lineage["datasets"]]
    views = [Node("feature view", name, link=link("features", name)) for name in lineage["features"]]
    to_run = link("runs", lineage["run"]) if run_is_known else ""
    run = [Node("run", lineage["run"], link=to_run)] if lineage["run"] else []
    origins = [Node("code", lineage["code"][:12], is_root=True)] if lineage["code"] else []
    if lineage["parent"]:
        to_parent = link("models", model, "versions", lineage["parent"])
        origins.append(Node("parent", f"version {lineage['parent']}", link=to_parent, is_root=True))
    columns = [data + views, run + origins] if run else [data + views + origins]
    users = [Node("alias", alias, "live", link("models", model)) for alias in aliases]
    users += [
        Node("traffic", f"{arm['name']}, {100 * arm['share']:.4g} %", "live", link("traffic", model))
        for arm in arms
    ]
    answers = link("predictions", model=model, version=version["version"])
    logged = [Node("predictions", "of this version", link=answers)] if users else []
    own = [Node("version", f"{model}@{version['version']}", "own")]
    columns = [column for column in (*columns, own, users, logged) if column]
    return draw_columns(columns, label=f"Lineage of {model}@{version['version']}")


def render_markdown(text: str) -> Markup:
    """Render Markdown that people and models wrote to HTML in which every tag is the renderer's own.

    No address but http, https and mailto leads anywhere; a text that is too long to be parsed is shown as it stands.

    Brackets and emphases that do not match take time by the square of their number.
    """
    if len(text) > _LONGEST or sum(map(text.count, _MARKS)) > _MOST_MARKS:
        shown = text[:_LONGEST_PLAIN]
        return Markup("<pre>{}</pre>").format(
            shown if shown == text else f"{shown}…\n({len(text):,} characters)"
        )
    return Markup(_PARSER.render(text))  # noqa: S704  # escaped by the parser, which knows no HTML here
