"""Commands of tokens and workspaces, and in which workspace a command works."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ray_apps.cli.test_cli import run
from toque.ray_apps.cli.arguments import Given
from toque.ray_apps.cli.client import Client
from toque.ray_apps.cli.commands.machine import _modules
from toque.ray_apps.cli.commands.predict import _predict
from toque.ray_apps.cli.errors import UsageError


@pytest.fixture
def payments(platform: Any, capsys: Any, tmp_path: Path) -> None:
    """A workspace with a model of its own."""
    assert run(capsys, "workspace", "create", "payments", "--description", "Cards.")[0] == 0
    there = platform.context.in_workspace("payments").registry()
    files = tmp_path / "own"
    files.mkdir()
    (files / "weights.bin").write_bytes(b"2")
    there.create_model("fraud")
    there.create_version("fraud", files)


def test_a_token_is_made_with_grants_and_shown_with_its_last_use(
    platform: Any, payments: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = ("--workspace", "payments", "--model", "fraud", "--grant", "labeller:payments")
    limits = ("--expires", "never", "--rate", "50", "--max-in-flight", "8")
    code, out, err = run(capsys, "token", "create", "web", "predictor", *narrow, *limits)
    assert code == 0, err
    rows = {each["name"]: each for each in json.loads(run(capsys, "token", "list", "-o", "json")[1])}
    assert rows["web"]["grants"] == ["caller:payments:fraud", "labeller:payments"]
    assert rows["web"]["limits"] == {"rate_per_s": 50, "max_in_flight": 8}
    assert (rows["web"]["expires_at"], rows["web"]["last_used_at"]) == (None, None)
    monkeypatch.setenv("TOQUE_TOKEN", out.strip())
    code, out, _ = run(capsys, "workspace", "list", "-o", "tsv")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["name", "payments"]
    code, _, err = run(capsys, "models", "list")
    assert (code, "this needs viewer in workspace 'payments'" in err) == (1, True)
    monkeypatch.setenv("TOQUE_TOKEN", platform.token)
    rows = {each["name"]: each for each in json.loads(run(capsys, "token", "list", "-o", "json")[1])}
    assert rows["web"]["last_used_at"] is not None


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("token create eve", 2, "give a role, or --grant"),
        ("token create eve cook", 2, "there is no 'cook'"),
        (
            "token create eve viewer --expires 3d",
            2,
            "expires_at: '3d' is not a time; write ISO 8601 with its offset",
        ),
        (
            "token create eve viewer --expires 2030-01-31T18:00:00",
            2,
            "'2030-01-31T18:00:00' has no timezone; write",
        ),
        ("audit-log --since yesterday", 2, "since: 'yesterday' is not a time; write ISO 8601"),
        ("token create eve --grant viewer:nowhere", 1, "'nowhere' does not exist"),
        ("workspace create No_Such", 2, "name"),
        (
            "workspace set paymens --description x",
            1,
            "did you mean 'payments'? `toque access workspace list`",
        ),
    ],
)
def test_what_is_wrong_with_a_grant_or_workspace_is_told(
    platform: Any, payments: None, capsys: Any, words: str, code: int, told: str
) -> None:
    found, out, err = run(capsys, *words.split())
    assert (found, out, told in err) == (code, "", True), err


def test_a_command_works_in_the_workspace_that_is_named(
    platform: Any, payments: None, model: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model in run(capsys, "models", "list")[1]
    out = run(capsys, "--workspace", "payments", "models", "list")[1]
    assert ("fraud" in out, model in out) == (True, False)
    monkeypatch.setenv("TOQUE_WORKSPACE", "payments")
    assert "fraud" in run(capsys, "models", "list")[1]
    assert run(capsys, "--workspace", "default", "models", "show", model)[0] == 0
    code, _, err = run(capsys, "--workspace", "nowhere", "models", "list")
    assert (code, "workspace 'nowhere' does not exist" in err) == (1, True), err


def test_a_workspace_is_changed(platform: Any, payments: None, capsys: Any) -> None:
    tier = ("--service-tier", "priority")
    for limit in (("--max-in-flight", "8"), ("--rate", "10"), tier, ("--description", "Cards.")):
        assert run(capsys, "workspace", "set", "payments", *limit) == (0, "changed\n", "")
    found = json.loads(run(capsys, "workspace", "list", "-o", "json")[1])
    changed = next(each for each in found if each["name"] == "payments")
    limits = {"rate_per_s": 10, "max_in_flight": 8, "service_tier": "priority"}
    assert (changed["description"], changed["limits"]) == ("Cards.", limits)


@pytest.mark.parametrize(
    ("workspace", "path"),
    [
        (None, "/v2/models/late/infer"),
        ("default", "/v2/models/late/infer"),
        ("payments", "/workspaces/payments/v2/models/late/infer"),
    ],
)
def test_a_prediction_is_asked_for_below_its_workspace(workspace: str | None, path: str, capsys: Any) -> None:
    import httpx

    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={})

    client = Client("http://x", "t", workspace=workspace, transport=httpx.MockTransport(answer))
    words = {
        "version": None,
        "file": None,
        "json": '{"inputs": []}',
        "entities": None,
        "request": None,
        "example": False,
        "explain": False,
        "attribute": [],
    }
    _predict(Given(client=client, model="late", id=None, **words))
    assert asked[0].url.path == path
    assert asked[0].headers.get("x-toque-workspace") == workspace


def test_refusals_and_changes_are_listed(
    platform: Any, payments: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(capsys, "audit-log", "--kind", "access", "--actor", "ada", "-o", "json")
    assert code == 0, err
    assert all(each["who"] == "ada" and each["kind"] == "access" for each in json.loads(out))
    assert "payments" in run(capsys, "audit-log", "--everywhere", "-o", "tsv")[1]
    assert "--everywhere shows all" in "".join(run(capsys, "audit-log", "--actor", "nobody")[1:])
    assert "--everywhere" not in "".join(run(capsys, "audit-log", "--actor", "nobody", "--everywhere")[1:])
    code, _, err = run(capsys, "audit-log", "--since", "yesterday")
    assert (code, "since" in err) == (2, True)


def test_the_projects_of_several_workspaces_are_each_looked_for() -> None:
    assert _modules("base,payments=teams.payments") == ["base", "teams.payments"]
    assert _modules("") == []
    with pytest.raises(UsageError, match="give each workspace one module"):
        _modules("a,b")
