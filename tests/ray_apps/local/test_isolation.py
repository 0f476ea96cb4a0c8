"""Two teams on one running platform, as they would use it: neither sees or moves anything of the other's, by any door."""

import time
from typing import Any

import httpx
import mlflow
import pytest
import tritonclient.grpc as triton
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tests.ray_apps.local.shared_platform import SharedPlatform
from toque.ray_apps.local import RunningPlatform

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

DEADLINE_S = 120.0


class Team:
    """A person of a team, by HTTP in the team's workspace."""

    def __init__(self, running: RunningPlatform, token: str, workspace: str) -> None:
        self.running, self.token, self.workspace = running, token, workspace
        self.login = {"Authorization": f"Bearer {token}"}

    def status(self, method: str, path: str, body: Any = None, **headers: str) -> int:
        return self._send(method, path, body, headers).status_code

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        answer = self._send(method, path, body, headers)
        answer.raise_for_status()
        return answer.json()

    def names(self, path: str, field: str) -> set[str]:
        return {each[field] for each in self.ask("GET", path)}

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
        return httpx.request(
            method, self.running.url + path, json=body, headers=self.login | headers, timeout=120
        )


@pytest.fixture(scope="module")
def running(shared: SharedPlatform) -> RunningPlatform:
    return shared.up()


@pytest.fixture(scope="module")
def teams(running: RunningPlatform) -> tuple[Team, Team]:
    """An operator of the workspace that the project made, and one of another workspace."""
    admin = Team(running, running.token(), "default")
    admin.ask("POST", "/workspaces", {"name": "search"})

    def member(workspace: str) -> Team:
        body = {"name": f"{workspace}-member", "role": "operator", "workspace": workspace}
        return Team(running, admin.ask("POST", "/tokens", body)["token"], workspace)

    return member("payments"), member("search")


def test_functions_and_what_they_did_stay_with_their_team(teams: tuple[Team, Team]) -> None:
    payments, search = teams
    assert "charge" in payments.names("/functions", "name")
    assert "charge" not in search.names("/functions", "name")
    assert payments.ask("POST", "/functions/charge", {"amount": 10}, **{"Idempotency-Key": "once"}) == 12
    assert search.status("POST", "/functions/charge", {"amount": 10}) == 404
    (done,) = [each for each in payments.ask("GET", "/invocations") if each["function"] == "charge"]
    assert search.status("GET", f"/invocations/{done['id']}") == 404
    assert search.status("GET", "/invocations", **{"X-Toque-Workspace": "payments"}) == 403
    assert search.status("GET", "/workspaces/payments/invocations") == 403


def test_schedules_run_in_the_workspace_of_their_project_alone(
    running: RunningPlatform, teams: tuple[Team, Team]
) -> None:
    payments, search = teams
    deadline = time.monotonic() + DEADLINE_S
    while "heartbeat" not in payments.names("/invocations", "function"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for other in (search, Team(running, running.token(), "default")):
        assert "heartbeat" not in other.names("/schedules", "function")
        assert "heartbeat" not in other.names("/invocations", "function")


def test_runs_of_a_team_are_not_there_for_another_by_mlflows_client(
    teams: tuple[Team, Team], monkeypatch: pytest.MonkeyPatch
) -> None:
    payments, search = teams

    def client_of(team: Team, workspace: str) -> MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", team.token)
        mlflow.set_workspace(workspace)
        return MlflowClient(team.running.url)

    try:
        own = client_of(payments, "payments")
        experiment = own.create_experiment("secret")
        run = own.create_run(experiment).info.run_id
        own.log_text(run, "hello", "note.txt")
        assert [each.name for each in client_of(search, "search").search_experiments()] == ["Default"]
        for attempt in ("get_run", "list_artifacts", "delete_run"):
            with pytest.raises(MlflowException):
                getattr(client_of(search, "search"), attempt)(run)
        with pytest.raises(MlflowException, match="this needs"):
            client_of(search, "payments").search_experiments()
        assert client_of(payments, "payments").get_run(run).info.lifecycle_stage == "active"
    finally:
        mlflow.set_workspace(None)


def test_models_of_another_workspace_are_closed_by_grpc_and_http(
    running: RunningPlatform, teams: tuple[Team, Team]
) -> None:
    payments, search = teams
    assert search.status("GET", "/workspaces/payments/v2/models/fraud") == 403
    assert payments.status("GET", "/workspaces/payments/v2/models/fraud") == 404
    with triton.InferenceServerClient(f"{running.settings.host}:{running.ports.grpc}") as client:
        login = {"authorization": f"Bearer {search.token}", "x-toque-workspace": "payments"}
        with pytest.raises(triton.InferenceServerException, match="this needs"):
            client.get_model_metadata("fraud", headers=login)
        assert (
            client.get_model_repository_index(headers={"authorization": f"Bearer {search.token}"}) is not None
        )


def test_refusals_are_in_the_audit_of_the_workspace_that_was_asked_for(
    running: RunningPlatform, teams: tuple[Team, Team]
) -> None:
    _, search = teams
    assert search.status("GET", "/models", **{"X-Toque-Workspace": "payments"}) == 403
    admin = Team(running, running.token(), "default")
    deadline = time.monotonic() + DEADLINE_S
    found: list[str] = []
    while "gateway: GET /models" not in found:
        assert time.monotonic() < deadline
        refused = admin.ask("GET", "/audit?kind=refusal", **{"X-Toque-Workspace": "payments"})
        found = [each["what"] for each in refused if each["who"] == "search-member"]
        time.sleep(0.05)  # between two looks, as above
