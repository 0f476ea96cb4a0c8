"""Functions callable by HTTP: only those that say so, by a role, and never with an argument that reaches outside."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import AnyUrl, BaseModel, FilePath, SecretStr

from toque.functions import function
from toque.functions.runtime import catalog
from toque.functions.runtime.errors import DeclarationError
from toque.registry import Role


class Target(BaseModel):
    name: str
    address: AnyUrl | None = None


def test_a_function_is_for_python_unless_it_says_http() -> None:
    @function
    def plain(a: int) -> int:
        return a

    @function(http=True)
    def asked(a: int) -> int:
        return a

    @function(http=True, role="viewer")
    def read() -> int:
        return 1

    assert [each.http for each in (plain, asked, read)] == [False, True, True]
    assert (asked.role, read.role) == (Role.operator, Role.viewer)


@pytest.mark.parametrize("kind", [Path, FilePath, AnyUrl, SecretStr, list[Path], Target, dict[str, Target]])
def test_no_argument_of_an_http_function_is_a_path_a_url_or_a_secret(kind: Any) -> None:
    def body(harmless: int, where: kind) -> int:
        return harmless

    function(body)
    with pytest.raises(DeclarationError, match=r"body: where is a .*leave http=True out"):
        function(http=True)(body)


def test_an_http_function_has_types_that_json_carries() -> None:
    def rows(table: pa.Table) -> int:
        return int(table.num_rows)

    function(rows)
    with pytest.raises(DeclarationError, match="no JSON Schema"):
        function(http=True)(rows)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"role": "viewer"}, "add http=True"),
        ({"http": True, "role": "cook"}, "'cook': there are viewer, caller"),
        ({"http": True, "role": "caller"}, "runs no functions; there are viewer, operator"),
        ({"http": "yes"}, "http='yes' must be bool"),
    ],
)
def test_a_role_is_one_that_runs_functions(declared: dict[str, Any], message: str) -> None:
    def body() -> int:
        return 1

    with pytest.raises(DeclarationError, match=message):
        function(**declared)(body)


def test_how_it_is_called_travels_with_a_function_made_within_another() -> None:
    @function(http=True, role="admin")
    def local() -> int:
        return 1

    rebuild, (kind, body, options) = local.__reduce__()
    again = rebuild(kind, body, options)
    assert (again.http, again.role) == (True, Role.admin)


def test_the_platforms_own_functions_are_reviewed_one_by_one() -> None:
    """A new function of the platform stands here before anybody calls it by HTTP."""
    catalog.discover()
    found = {
        each.name: each for each in catalog.all_functions() if each.reference.startswith("toque.functions.")
    }
    by_python = {name for name, each in found.items() if not each.http}
    roles = {
        role.name: {name for name, each in found.items() if each.http and each.role is role} for role in Role
    }
    assert by_python >= {"inspect_models", "retrain", "send_alert", "tell_people"}
    assert {role for role, names in roles.items() if names} == {"viewer", "operator", "approver", "admin"}
    assert roles["approver"] == {"approve_version", "reject_version"}
    assert roles["admin"] == {
        "apply_retention",
        "erase_subject",
        "finish_erasures",
        "list_erasures",
        "preview_erasure",
        "remove_quota",
        "set_quota",
        "set_retention",
    }
    assert roles["viewer"] == {
        "get_run",
        "list_experiments",
        "run_series",
        "search_runs",
        "get_invocation",
        "get_prices",
        "invocation_logs",
        "known_costs_of_days",
        "list_costs",
        "list_invocations",
        "get_layer",
        "get_traffic",
        "list_layers",
        "live_figures",
        "preview_traffic",
        "get_alias",
        "get_signature",
        "get_version",
        "list_versions",
        "model_card",
        "model_history",
        "unmet_conditions",
        "versions_to_approve",
        "admissions",
        "alarm_history",
        "alert_status",
        "budgets",
        "compare_prompts",
        "error_budgets",
        "explain_rollout",
        "false_alarm_budget",
        "feature_catalog",
        "feature_course",
        "feature_health",
        "feature_health_history",
        "feature_statistics",
        "language_monitors",
        "list_rollouts",
        "list_predictions",
        "list_prompts",
        "live_scores",
        "look_at_rollout",
        "monitor_findings",
        "monitor_status",
        "open_alarms",
        "performance_estimates",
        "prediction_log_losses",
        "quotas",
        "retention",
        "rollout_budget",
        "rollout_record",
        "rollout_status",
        "running_figures",
        "source_status",
        "stream_status",
        "standing_alarms",
        "unknown_labels",
        "vector_indexes",
        "version_origins",
        "versions_made_from",
    }


def test_a_route_says_that_a_function_is_callable_and_travels_with_it() -> None:
    catalog.discover()
    promote = catalog.get("promote_version")
    assert (promote.http, promote.in_thread, promote.role) == (True, True, Role.operator)
    assert (str(promote.route), promote.route.parameters) == ("POST /models/{model}/promote", ("model",))
    assert promote.admin_for == {"override": "an override of {model}'s policy"}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"route": "models/{model}"}, "is not a method and a path"),
        ({"route": "FETCH /models/{model}"}, "is not a method and a path"),
        ({"route": "POST /models/{model} 404"}, "is not a method and a path"),
        (
            {"route": "GET /models/{name}"},
            r"names the arguments \['name'\], which it has not; there are model",
        ),
        ({"route": "GET /models/{model}", "admin_for": {"force": "x"}}, r"admin_for names .*'force'"),
    ],
)
def test_a_route_that_cannot_be_is_refused_at_import(declared: dict[str, Any], message: str) -> None:
    def body(model: str) -> str:
        return model

    body.__module__ = "toque.functions.elsewhere"
    with pytest.raises(DeclarationError, match=message):
        function(**declared)(body)


def test_a_project_declares_no_route() -> None:
    def body(model: str) -> str:
        return model

    with pytest.raises(DeclarationError, match=r"route=… are for the platform's own"):
        function(route="GET /models/{model}")(body)
