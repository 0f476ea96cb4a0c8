from dataclasses import replace
from pathlib import Path

import pytest

from toque.functions.prediction_log import default_wal_root
from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context, context_of, projects_of
from toque.functions.runtime.declaration import Cron
from toque.functions.runtime.function import function
from toque.functions.runtime.triggers import schedule
from toque.functions.runtime.triggers.schedule import Schedule

PROJECTS = {"default": "teams.base", "payments": "teams.payments", "search": "teams.payments.search"}


@pytest.fixture
def used(tmp_path: Path) -> Context:
    projects = ",".join(f"{workspace}={module}" for workspace, module in PROJECTS.items())
    return context_of({"TOQUE_STORE": f"file://{tmp_path}/store", "TOQUE_PROJECT": projects})


def test_a_context_moves_between_workspaces(used: Context):
    payments = used.in_workspace("payments")
    assert payments.store_url == f"{used.store_url}/workspaces/payments"
    assert payments.store.url == payments.store_url
    assert (payments.project, used.project) == ("teams.payments", "teams.base")
    assert payments.platform_url == used.store_url
    assert payments.features().project == "payments"
    back = payments.in_workspace("search").in_workspace("default")
    assert (back.store_url, back.project) == (used.store_url, used.project)


def test_a_process_begins_in_the_workspace_of_its_environment(used: Context):
    found = context_of({"TOQUE_STORE": used.store_url, "TOQUE_WORKSPACE": "payments"})
    assert (found.workspace, found.store_url) == ("payments", f"{used.store_url}/workspaces/payments")


@pytest.mark.parametrize(
    ("text", "projects"),
    [
        ("", {}),
        ("teams.base", {"default": "teams.base"}),
        ("teams.base, payments=teams.payments", {"default": "teams.base", "payments": "teams.payments"}),
    ],
)
def test_the_projects_of_workspaces_are_read(text: str, projects: dict[str, str]):
    assert projects_of(text) == projects


@pytest.mark.parametrize("text", ["a,b", "payments=", "Pay=a", "payments=a,payments=b"])
def test_unclear_projects_are_refused(text: str):
    with pytest.raises(ValueError, match=r"TOQUE_PROJECT|workspace"):
        projects_of(text)


@pytest.mark.parametrize(
    ("module", "seen"),
    [
        ("toque.functions.training", {"default", "payments", "search"}),
        ("teams.shared", {"default", "payments", "search"}),
        ("teams.base.jobs", {"default"}),
        ("teams.payments", {"payments"}),
        ("teams.payments.search.jobs", {"search"}),
        ("teams.payments_two", {"default", "payments", "search"}),
    ],
)
def test_a_function_is_seen_by_the_workspaces_of_its_project(used: Context, module: str, seen: set[str]):
    assert {each for each in PROJECTS if used.in_workspace(each).sees(f"{module}:work")} == seen


def test_a_workspace_fires_the_schedules_of_the_functions_that_it_sees(used: Context):
    @function(schedule=[Cron("0 6 * * *")])
    def nightly() -> None: ...

    catalog.declare(nightly)
    theirs = replace(used, projects=(("payments", nightly.reference.partition(":")[0]),))
    schedule.add(Schedule("inspect", nightly, Cron("0 7 * * *")), workspace="payments")
    named = {
        each: {found.name for found in schedule.declared(theirs.in_workspace(each))} & {"nightly", "inspect"}
        for each in ("default", "payments")
    }
    assert named == {"default": set(), "payments": {"nightly", "inspect"}}


def test_write_ahead_files_of_a_workspace_are_not_in_the_store_nor_among_others(used: Context):
    default, payments = (
        default_wal_root(used.in_workspace(each).store_url) for each in ("default", "payments")
    )
    assert default == Path(f"{used.store_url.removeprefix('file://')}-wal")
    assert payments == default / "workspaces" / "payments"
