"""Pages of models: the list, the versions that wait for an approver, and one model with its versions, policy and history."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from toque.ray_apps.console.entry import Entry
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import CHANGE, Form, page_for, pages_router
from toque.registry import Role

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
Viewer = Annotated[Page, page_for(Role.viewer)]
Operator = Annotated[Page, page_for(Role.operator)]


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
async def roll_back(page: Operator, model: str, form: Annotated[Form, CHANGE]) -> Response:
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
