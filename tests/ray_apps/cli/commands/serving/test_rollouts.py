"""`toque rollout` and `toque traffic` in a layer, against a gateway on a real port."""

import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from toque.functions.rollout.jobs import rollouts
from toque.functions.runtime import use_context
from toque.ray_apps.cli import main
from toque.ray_apps.cli.client import Client
from toque.ray_apps.cli.commands import rollouts as rollout_table
from toque.registry import ModelPolicy


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def late(platform: Any, model: str) -> str:
    """Version 1 is the champion, and another needs an approval for that."""
    platform.registry.set_alias(model, "champion", 1)
    platform.registry.set_policy(model, ModelPolicy(guarded=frozenset({"champion"})))
    return model


def test_a_person_promotes_what_is_approved_and_the_journal_says_who_and_why(
    platform: Any, late: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = '{"layer": {"name": "trips", "share": 0.5}, "holdout": {"name": "q4", "share": 0.1}}'
    assert run(capsys, "rollout", "start", late, "2", "--policy", policy)[0] == 0
    code, _, err = run(capsys, "rollout", "promote", late, "--reason", "I like it")
    assert code == 1
    assert "late@2 may not become the champion yet: 0 of 1 approvals" in err
    platform.registry.as_actor("bob").approve(late, 2)
    code, out, _ = run(capsys, "rollout", "promote", late, "--reason", "I like it", "--json")
    assert (code, json.loads(out)["stage"]) == (0, "promoted")
    assert platform.registry.traffic(late).champion.version == 2
    explained = run(capsys, "rollout", "explain", late, "1")[1]
    assert "promote by hand: I like it. ada decided" in explained
    assert run(capsys, "rollout", "status", late, "-f")[:2] == (0, lines(capsys, late))
    assert run(capsys, "traffic", "layer", "trips")[2] == "100.00% is free\n"
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run(capsys, "rollout", "status", late, "-o", "table")
    heading, line = out.splitlines()
    assert re.split("  +", heading) == [
        "rollout",
        "version",
        "against",
        "stage",
        "started",
        "ended",
        "decided by",
        "why",
    ]
    facts = re.split("  +", line.strip())
    assert facts[:4] == ["0", "2", "1", "promoted"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", at) for at in facts[4:6])
    assert facts[6:] == ["by hand", "-"]


def lines(capsys: Any, model: str) -> str:
    """What following an ended rollout prints: a line, the same again."""
    said = run(capsys, "rollout", "status", model, "--follow")[1]
    assert re.fullmatch(r".{16}Z late: rollout 0, version 2 .*promoted.*by by_hand\n", said), said
    return said


def test_a_person_aborts_and_who_follows_learns_of_it(
    platform: Any, late: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(capsys, "rollout", "status", late, "-f")
    assert (code, "has never had a rollout" in err) == (1, True)
    assert run(capsys, "rollout", "start", late, "2", "--rivals", "3")[0] == 0
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            with use_context(platform.context):
                rollouts(late).end("roll_back", reason="enough")

    monkeypatch.setattr(rollout_table, "sleep", wait)
    code, out, _ = run(capsys, "rollout", "status", late, "--watch")
    assert code == 1
    first, last = out.splitlines()  # nothing changed between the first two looks
    assert "version 2, 3 against 1, shadow since" in first
    assert "champion 0 answers 0 errors, shadow 0 answers 0 errors, shadow 0" in first
    assert "version 3: 0 labels, improvement not judged yet; hold by undecided" in first
    assert "rolled_back" in last
    code, _, err = run(capsys, "rollout", "abort", late, "--reason", "again")
    assert (code, "ended as rolled_back; start another" in err) == (1, True)


def test_at_a_terminal_it_is_a_live_table_and_control_c_leaves_it_quietly(
    platform: Any, late: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capsys, "rollout", "start", late, "2")[0] == 0
    screen = io.StringIO()

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rollout_table, "sleep", interrupt)
    console = Console(file=screen, force_terminal=True, width=100)
    client = Client(platform.url, platform.token)
    assert rollout_table.follow(client, late, console=console) == 130
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    for text in (
        "version 2 against 1, shadow since",
        "paired labels",
        "champion_changed",
        "next: a canary of 10%",
    ):
        assert text in shown
    assert all(len(each) <= 100 for each in shown.splitlines())


def test_a_split_in_a_layer_beside_a_holdout_is_set_and_shown(platform: Any, late: str, capsys: Any) -> None:
    platform.registry.set_policy(late, ModelPolicy())
    assert run(capsys, "traffic", "holdout", late, "q4", "0.05", "--reason", "the quarter")[0] == 0
    code, out, _ = run(capsys, "traffic", "set", late, "a=2:0.5", "b=3:0.25", "--layer", "trips:0.4")
    assert code == 0
    assert "holdout\tq4\t\t5.00%\tof all units take no part\n" in out
    assert "arm\ta\t2\t50.00%\tof the 40.00% that the arms share of layer trips\n" in out
    _, out, err = run(capsys, "traffic", "layer", "trips")
    assert (out.splitlines()[1], err) == ("late\t40.00%\t0-3999\ttrue", "60.00% is free\n")
    assert run(capsys, "traffic", "layer")[1].split() == ["layer", "trips"]
    assert run(capsys, "traffic", "set", late)[0] == 0
    assert run(capsys, "traffic", "layer", "trips")[2] == "100.00% is free\n"
    assert "did you mean 'trips'?" in run(capsys, "traffic", "layer", "trip")[2]
    assert "holdout" not in run(capsys, "traffic", "end-holdout", late, "q4")[1]
    code, _, err = run(capsys, "traffic", "set", late, "--layer", "trips")
    assert (code, "write NAME:SHARE" in err) == (2, True)
