"""An unapproved version reaches a guarded alias, or any traffic, by no door."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from toque.ray_apps.cli import main
from toque.ray_apps.cli.client import Client
from toque.registry import ModelPolicy, Refused, Registry

GUARDED = ModelPolicy(guarded=frozenset({"champion"}), approvals=1)


@pytest.fixture
def guarded(platform: Any, tmp_path: Path) -> Registry:
    """Version 1 was live before the policy; 2 is approved and champion; 3 is new."""
    (tmp_path / "weights").write_bytes(b"w")
    registry: Registry = platform.registry
    registry.create_model("late")
    for _ in range(3):
        registry.create_version("late", tmp_path / "weights")
    registry.set_alias("late", "champion", 1)
    registry.as_actor("bob").approve("late", 2)
    registry.set_alias("late", "champion", 2)
    registry.set_policy("late", GUARDED)
    return registry


def python(call: Callable[[Registry], object]) -> Callable[[Any], bool]:
    """A door: whether the call went through."""

    def door(platform: Any) -> bool:
        try:
            call(platform.registry.as_actor("eve"))
        except Refused:
            return False
        return True

    return door


def command(*arguments: str) -> Callable[[Any], bool]:
    return lambda _: main(arguments) == 0


def http(method: str, path: str, body: dict[str, Any]) -> Callable[[Any], bool]:
    def door(platform: Any) -> bool:
        token = platform.token
        answer = httpx.request(
            method, platform.url + path, json=body, headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.status_code in {200, 403, 409}, answer.text
        return answer.status_code == 200

    return door


SPLIT = {"arms": {"canary": {"version": 3, "share": 0.01}}}
DOORS = {
    "python set_alias": python(lambda reg: reg.set_alias("late", "champion", 3)),
    "python promote": python(lambda reg: reg.promote("late", 3, expected=2)),
    "python traffic": python(lambda reg: reg.set_traffic("late", {"canary": (3, 0.01)})),
    "python rollback": python(lambda reg: reg.rollback("late")),
    "command promote": command("models", "promote", "late", "3"),
    "command traffic": command("traffic", "set", "late", "canary=3:0.01"),
    "command rollback": command("traffic", "rollback", "late"),
    "http alias": http("PUT", "/models/late/aliases/champion", {"version": 3}),
    "http promote": http("POST", "/models/late/promote", {"version": 3}),
    "http traffic": http("PUT", "/models/late/traffic", SPLIT),
    "http rollback": http("POST", "/models/late/aliases/champion/rollback", {}),
    "mlflow alias": http(
        "POST",
        "/api/2.0/mlflow/registered-models/alias",
        {"name": "late", "alias": "champion", "version": "3"},
    ),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_an_unapproved_version_stays_out(platform: Any, guarded: Registry, door: Callable[[Any], bool]):
    before = guarded.get_model("late")
    assert not door(platform)
    assert guarded.get_model("late") == before
    for version in (1, 3):
        guarded.as_actor("bob").approve("late", version)
    assert door(platform)  # the same door, once it is approved


def test_an_emergency_goes_through_with_a_reason_and_is_marked(platform: Any, guarded: Registry, capsys: Any):
    assert main(("models", "promote", "late", "3", "--override", "  ")) == 1
    assert main(("models", "promote", "late", "3", "--expected", "1", "--override", "site is down")) == 1
    assert "it is 2 now" in capsys.readouterr().err
    assert main(("models", "promote", "late", "3", "--expected", "2", "--override", "site is down")) == 0
    (mark,) = guarded.get_version("late", "champion").overrides
    assert (mark.actor, mark.reason) == ("ada", "site is down")


def test_of_two_rollback_commands_at_once_one_goes_back(
    platform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").write_bytes(b"w")
    registry: Registry = platform.registry
    registry.create_model("late")
    for number in (1, 2, 3):
        registry.create_version("late", tmp_path / "weights")
        registry.promote("late", number)
    send = Client.send

    def after_another(self: Client, method: str, *arguments: Any, **more: Any) -> Any:
        if method == "POST":
            registry.rollback("late", expected=3)
        return send(self, method, *arguments, **more)

    monkeypatch.setattr(Client, "send", after_another)
    assert main(("traffic", "rollback", "late")) != 0
    assert registry.get_model("late").aliases["champion"] == 2
