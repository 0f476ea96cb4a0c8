"""The audit: refused requests, changes of access, and changes of models, as one list by time."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from toque.registry.access.grants import DEFAULT_WORKSPACE, EVERY_WORKSPACE, workspace_store
from toque.registry.access.tokens import Access, Tokens
from toque.registry.journal import Entry, Journal
from toque.registry.times import from_text

if TYPE_CHECKING:
    from toque.registry.store import ObjectStore

REFUSALS: Final = "access/refusals/"
"""Prefix of the keys of refused requests, in the platform's store, by day."""
REFUSALS_TIME: Final = "%Y-%m-%d/%H%M%S.%f"
"""When refusals were written, in UTC, as their keys have it before the last hyphen."""
_SKEW: Final = timedelta(minutes=1)  # between the clocks of writers of one journal

Kind = Literal["refusal", "access", "model"]


class AuditEntry(BaseModel):
    """One thing that somebody did or was refused.

    who: None: a caller without a valid token. what: method and path of a refused request, or kind of the change and
    its object. workspace: None if it is unknown or the whole platform. client: address, for refusals. count: how
    often, up to `at`. status: of the refusal, None for changes. detail: why it was refused, or the change's reason.
    """

    model_config = ConfigDict(frozen=True)

    at: datetime
    kind: Kind
    who: str | None
    what: str
    workspace: str | None = None
    client: str = ""
    status: int | None = None
    count: int = 1
    detail: str = ""


_Found = tuple[datetime, AuditEntry]
"""An entry, and a time after which none lies that is found later."""


def newest_first(
    store: ObjectStore, workspaces: Iterable[str], kind: Kind | None, *, since: datetime
) -> Iterator[AuditEntry]:
    """Read the audit of the whole platform from `since` on, newest first; of a journal little more is read than is taken.

    store: the platform's. workspaces: those whose models are read. kind: only entries of it.
    """
    found: list[Iterator[_Found]] = []
    if kind in (None, "refusal"):
        found.append(_refusals(store, since))
    if kind in (None, "access"):
        found.append(_access_changes(store, since))
    if kind in (None, "model"):
        found += [each for name in workspaces for each in _model_changes(store, name, since)]
    return _in_order(heapq.merge(*found, key=itemgetter(0), reverse=True))


def _refusals(store: ObjectStore, since: datetime) -> Iterator[_Found]:
    """Read what refusals were written, backwards; each was before it was written, at times long before."""
    for key in reversed(list(store.list(REFUSALS, after=f"{REFUSALS}{since.date().isoformat()}"))):
        data = store.find(key)  # retention may have removed it since it was listed
        content: dict[str, Any] = json.loads(data) if data is not None else {"door": "", "refusals": []}
        written = datetime.strptime(key[len(REFUSALS) :].rpartition("-")[0], REFUSALS_TIME).replace(
            tzinfo=UTC
        )
        for each in content["refusals"]:
            refusal = _refusal(content["door"], each)
            if refusal.at >= since:
                yield written, refusal


def _access_changes(store: ObjectStore, since: datetime) -> Iterator[_Found]:
    follow = Access(store, actor="audit").follow()
    tokens: Tokens = {}
    for entry in _entries(follow.journal, since):
        if entry.body["kind"] == "revoked" and not tokens:  # it names the token by id alone
            tokens = follow.refresh().tokens
        yield entry.at + _SKEW, _access_change(entry, tokens)


def _model_changes(store: ObjectStore, workspace: str, since: datetime) -> list[Iterator[_Found]]:
    inside = workspace_store(store, workspace)

    def changes(model: str) -> Iterator[_Found]:
        journal = Journal(inside, f"models/{model}/journal", actor="audit")
        for entry in _entries(journal, since):
            yield entry.at + _SKEW, _model_change(entry, model, workspace)

    return [changes(key.removeprefix("model-names/")) for key in inside.list("model-names/")]


def _entries(journal: Journal, since: datetime) -> Iterator[Entry]:
    recent = takewhile(lambda entry: entry.at + _SKEW >= since, journal.newest_first())
    return (entry for entry in recent if entry.at >= since)


def _in_order(found: Iterable[_Found]) -> Iterator[AuditEntry]:
    """Sort entries by their time, the newest first, holding back those that a later one may precede."""
    waiting: list[tuple[float, int, AuditEntry]] = []
    for number, (bound, entry) in enumerate(found):
        while waiting and -waiting[0][0] >= bound.timestamp():
            yield heapq.heappop(waiting)[-1]
        heapq.heappush(waiting, (-entry.at.timestamp(), number, entry))
    while waiting:
        yield heapq.heappop(waiting)[-1]


def _refusal(door: str, found: Mapping[str, Any]) -> AuditEntry:
    return AuditEntry(
        at=from_text(found["last_at"]),
        kind="refusal",
        who=found["who"],
        what=f"{door}: {found['what']}",
        workspace=found["workspace"],
        client=found["client"],
        status=found["status"],
        count=found["count"],
        detail=found["why"],
    )


def _access_change(entry: Entry, tokens: Tokens) -> AuditEntry:
    body = entry.body
    if body["kind"].startswith("workspace-"):
        what, workspace = f"{body['kind']}: {body['workspace']}", body["workspace"]
        detail = body.get("description", "")
    else:
        name, grants = _token(body, tokens)
        reached = {grant["workspace"] for grant in grants}
        what, workspace = f"token {body['kind']}: {name}", None
        if len(reached) == 1 and EVERY_WORKSPACE not in reached:
            workspace = reached.pop()
        detail = ", ".join(f"{grant['role']}:{grant['workspace']}" for grant in grants)
    return AuditEntry(
        at=entry.at, kind="access", who=entry.actor, what=what, workspace=workspace, detail=detail
    )


def _token(body: Mapping[str, Any], tokens: Tokens) -> tuple[str, list[dict[str, Any]]]:
    """Find name and grants of the token that a change is about, which may be of a release that gave it a role alone."""
    if "token" in body:
        token = body["token"]
        return token["name"], token.get("grants") or [
            {"role": token.get("role"), "workspace": DEFAULT_WORKSPACE}
        ]
    known = tokens.get(body["id"])
    return (body["id"], []) if known is None else (known.name, [g.model_dump() for g in known.grants])


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
