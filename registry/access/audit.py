"""The audit: refused requests, changes of access, and changes of models, as one list by time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from registry.access.grants import DEFAULT_WORKSPACE, EVERY_WORKSPACE
from registry.access.workspaces import workspace_store
from registry.journal import Entry, Journal
from registry.times import from_text

if TYPE_CHECKING:
    from registry.store import ObjectStore

REFUSALS: Final = "access/refusals/"
"""Prefix of the keys of refused requests, in the platform's store, by day."""


class AuditEntry(BaseModel):
    """One thing that somebody did or was refused.

    who: None: a caller without a valid token. what: method and path of a refused request, or kind of the change and
    its object. workspace: None if it is unknown or the whole platform. client: address, for refusals. count: how
    often, up to `at`. status: of the refusal, None for changes. detail: why it was refused, or the change's reason.
    """

    model_config = ConfigDict(frozen=True)

    at: datetime
    kind: Literal["refusal", "access", "model"]
    who: str | None
    what: str
    workspace: str | None = None
    client: str = ""
    status: int | None = None
    count: int = 1
    detail: str = ""


def read_refusals(store: ObjectStore, *, since: datetime) -> Iterator[AuditEntry]:
    """Read refused requests from `since` on, oldest first. store: the platform's."""
    for key in store.list(REFUSALS, after=f"{REFUSALS}{since:%Y-%m-%d}"):
        data = store.find(key)  # retention may have removed it since it was listed
        content: dict[str, Any] = json.loads(data) if data is not None else {"door": "", "refusals": []}
        for each in content["refusals"]:
            at = from_text(each["last_at"])
            if at >= since:
                yield AuditEntry(
                    at=at,
                    kind="refusal",
                    who=each["who"],
                    what=f"{content['door']}: {each['what']}",
                    workspace=each["workspace"],
                    client=each["client"],
                    status=each["status"],
                    count=each["count"],
                    detail=each["why"],
                )


def read_access_changes(store: ObjectStore, *, since: datetime) -> Iterator[AuditEntry]:
    """Read changes of tokens and workspaces from `since` on, newest first. store: the platform's."""
    entries = list(Journal(store, "access/journal", actor="audit").entries())
    tokens = {entry.body["token"]["id"]: entry.body["token"] for entry in entries if "token" in entry.body}
    for entry in reversed(entries):
        if entry.at < since:
            return
        yield _access_change(entry, tokens)


def read_model_changes(store: ObjectStore, workspace: str, *, since: datetime) -> Iterator[AuditEntry]:
    """Read changes of all models of a workspace from `since` on, model by model, newest first.

    store: the platform's.
    """
    inside = workspace_store(store, workspace)
    for key in inside.list("model-names/"):
        model = key.removeprefix("model-names/")
        journal = Journal(inside, f"models/{model}/journal", actor="audit")
        last = journal.find_last(0)
        for number in range(-1 if last is None else last, -1, -1):
            entry = journal.entry(number)
            if entry.at < since:
                break
            yield _model_change(entry, model, workspace)


def _access_change(entry: Entry, tokens: dict[str, dict[str, Any]]) -> AuditEntry:
    body = entry.body
    if body["kind"].startswith("workspace-"):
        what, workspace = f"{body['kind']}: {body['workspace']}", body["workspace"]
        detail = body.get("description", "")
    else:
        token = body.get("token") or tokens.get(body["id"], {"name": body.get("id"), "grants": []})
        grants = token.get("grants") or [{"role": token.get("role"), "workspace": DEFAULT_WORKSPACE}]
        reached = {grant["workspace"] for grant in grants}
        what, workspace = f"token {body['kind']}: {token['name']}", None
        if len(reached) == 1 and EVERY_WORKSPACE not in reached:
            workspace = reached.pop()
        detail = ", ".join(f"{grant['role']}:{grant['workspace']}" for grant in grants)
    return AuditEntry(
        at=entry.at, kind="access", who=entry.actor, what=what, workspace=workspace, detail=detail
    )


def _model_change(entry: Entry, model: str, workspace: str) -> AuditEntry:
    body = entry.body
    version = f"@{body['version']}" if "version" in body and not isinstance(body["version"], dict) else ""
    return AuditEntry(
        at=entry.at,
        kind="model",
        who=entry.actor,
        what=f"{body['kind']}: {model}{version}",
        workspace=workspace,
        detail=str(body.get("reason") or body.get("comment") or body.get("override") or ""),
    )
