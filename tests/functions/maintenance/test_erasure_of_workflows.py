"""An erasure runs no call of a workflow again: where the workflow goes on its call stays and is named, else both go."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conditions.faults import FragileStore, KilledError
from tests.functions.runtime.durable.direct import run_once
from toque.functions import Context, Retries, function, use_context, wait_for
from toque.functions.maintenance.erasure.jobs import erase_subject
from toque.functions.runtime.durable.ledger import Ledger
from toque.registry import open_store
from toque.registry.store import FolderStore

SUBJECT, BYSTANDER = "c-81723", "c-817231"
ran: Counter[str] = Counter()
children: dict[str, str] = {}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    ran.clear()
    children.clear()
    url = f"file://{tmp_path}/store"
    return Context(open_store(url), url, actor="ada")


@function
def refund(customer: str, note: str) -> str:
    ran[customer] += 1
    return "paid"


@function(retries=Retries(1))
def refunds(end: str, note: str, prefix: str | None) -> str:
    """Submit two refunds and do as `end` says."""
    for customer in (SUBJECT, BYSTANDER):
        children[customer] = refund.submit(customer, note, key=prefix and f"{prefix} {customer}").id
    if end == "fail":
        raise ValueError("the books are closed")
    if end == "wait":
        wait_for("books")
    return "done"


@function(retries=Retries(1))
def batch(inner: str, outer: str) -> str:
    children["inner"] = refunds.submit(inner, "n", None).id
    if outer == "fail":
        raise ValueError("no batch today")
    if outer == "wait":
        wait_for("batch")
    return "done"


def begun(context: Context, end: str, *, note: str = "n", key: str | None = None) -> str:
    """Run a workflow up to the state that `end` says, its refunds to their end."""
    ledger = Ledger(context.store, actor="ada")
    parent = ledger.submit(refunds, {"end": "wait" if end == "cancel" else end, "note": note, "prefix": key})
    with use_context(context):
        run_once(context, refunds, parent)
        for customer in (SUBJECT, BYSTANDER):
            run_once(context, refund, children[customer])
    if end == "cancel":
        ledger.cancel(parent)
    if end == "fail":
        ledger.dead_letters.add(parent)  # as its executor does
    return parent


def erased(context: Context) -> Any:
    with use_context(context):
        return erase_subject({"customer": SUBJECT})


def resumed(context: Context, function: Any, invocation: str) -> None:
    """Run an invocation again, and its refunds where they are due."""
    with use_context(context):
        run_once(context, function, invocation)
        ledger = Ledger(context.store, actor="ada")
        for customer in (SUBJECT, BYSTANDER):
            if not ledger.read(children[customer]).ended:
                run_once(context, refund, children[customer])


@pytest.mark.parametrize("key", [None, "monday"])
@pytest.mark.parametrize("note", ["n", "n" * (1 << 21)])  # arguments in the entry, and a value of their own
def test_a_call_of_a_waiting_workflow_stays_and_is_named_until_that_has_ended(
    context: Context, note: str, key: str | None
) -> None:
    parent = begun(context, "wait", note=note, key=key)
    left = erased(context).left
    assert any(f"{children[SUBJECT]}/ (workflow {parent} has not ended" in text for text in left)
    assert len(left) == (1 if note == "n" else 2)
    assert not any(children[BYSTANDER] in text for text in left)
    Ledger(context.store, actor="ada").signal(parent, "books")
    resumed(context, refunds, parent)
    assert Ledger(context.store, actor="ada").find_status(parent) == "succeeded"
    assert ran == {SUBJECT: 1, BYSTANDER: 1}
    certificate = erased(context)
    assert (certificate.left, certificate.removed["invocations"]) == ([], 1)
    assert _naming_subject(context) == []


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_a_dead_or_cancelled_workflow_goes_with_its_call(context: Context, end: str) -> None:
    parent = begun(context, end)
    certificate = erased(context)
    assert certificate.left == []
    assert certificate.removed == {"invocations": 1, "workflows that submitted them": 1}
    ledger = Ledger(context.store, actor="ada")
    assert [ledger.find_status(name) for name in (parent, children[SUBJECT])] == [None, None]
    assert ledger.find_status(children[BYSTANDER]) == "succeeded"
    assert list(ledger.invocations(status="dead")) == []
    assert ran == {SUBJECT: 1, BYSTANDER: 1}


def test_a_workflow_that_has_succeeded_stays_without_its_call(context: Context) -> None:
    parent = begun(context, "succeed")
    certificate = erased(context)
    assert (certificate.left, certificate.removed) == ([], {"invocations": 1})
    assert Ledger(context.store, actor="ada").find_status(parent) == "succeeded"


@pytest.mark.parametrize("outer", ["wait", "fail", "succeed"])
@pytest.mark.parametrize("inner", ["wait", "fail", "succeed"])
def test_a_call_of_a_call_runs_again_under_no_redrive(context: Context, outer: str, inner: str) -> None:
    ledger = Ledger(context.store, actor="ada")
    top = ledger.submit(batch, {"inner": inner, "outer": outer})
    with use_context(context):
        run_once(context, batch, top)
        run_once(context, refunds, children["inner"])
        for customer in (SUBJECT, BYSTANDER):
            run_once(context, refund, children[customer])
    stays = inner == "wait" or (inner == "fail" and outer == "wait")
    assert bool(erased(context).left) is stays
    for name, workflow in ((top, batch), (children["inner"], refunds)):
        if ledger.find_status(name) == "dead":
            ledger.redrive(name)
        if ledger.find_status(name) not in {None, "succeeded"}:
            resumed_or_left = ledger.find(children[SUBJECT])
            with use_context(context):
                run_once(context, workflow, name)
            assert (ledger.find(children[SUBJECT]) is None) == (resumed_or_left is None)
    assert ran == {SUBJECT: 1, BYSTANDER: 1}


def test_a_killed_erasure_leaves_no_workflow_that_runs_its_call_again(
    context: Context, tmp_path: Path
) -> None:
    parent = begun(context, "fail")
    for fatal in range(1, 100):
        copy = tmp_path / f"copy {fatal}"
        shutil.copytree(tmp_path / "store", copy)
        fragile = FragileStore(copy)
        fragile.fatal = fatal
        used = Context(fragile, f"file://{copy}", actor="ada")
        try:
            erased(used)
        except KilledError:
            pass
        else:
            break
        reader = Ledger(FolderStore(copy), actor="reader")
        assert reader.find(parent) is None or reader.find(children[SUBJECT]) is not None
    assert fatal > 3


def _naming_subject(context: Context) -> list[str]:
    texts = {key: context.store.get(key).decode("utf-8", "replace") for key in context.store.list("")}
    named = json.dumps(SUBJECT)
    return [
        key for key, text in texts.items() if named in text and key.startswith(("invocations/", "values/"))
    ]
