"""What is recorded of a model, from the command line, against a platform on a real port."""

import json
from pathlib import Path
from typing import Any

import pytest

from toque.ray_apps.cli import main
from toque.registry import Lineage, TableSnapshot


def test_a_policy_is_shown_set_and_in_force(
    platform: Any, model: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    assert main(("models", "policy", model, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["guarded"] == []
    wanted = '{"guarded": ["champion"], "approvals": 2, "gates": ["offline"]}'
    assert main(("models", "policy", model, "--set", wanted, "-o", "json")) == 0
    assert json.loads(capsys.readouterr().out)["approvals"] == 2
    assert main(("models", "promote", model, "1")) == 1
    assert "gate 'offline' has not run, 0 of 2 approvals" in capsys.readouterr().err
    assert main(("models", "policy", model, "--set", '{"guarded": ["champion"], "approvers": 7}')) == 2
    assert "approvers" in capsys.readouterr().err
    assert main(("token", "create", "eve", "operator")) == 0
    monkeypatch.setenv("TOQUE_TOKEN", capsys.readouterr().out.strip())
    assert main(("models", "policy", model, "--set", "{}")) == 1  # or anybody could lift the guard
    assert "this needs admin" in capsys.readouterr().err
    assert platform.registry.get_model(model).policy.approvals == 2


def test_a_card_is_printed_by_number_and_alias(platform: Any, model: str, capsys: Any):
    platform.registry.set_alias(model, "champion", 2)
    for version in ("2", "champion"):
        assert main(("models", "card", model, version)) == 0
        assert capsys.readouterr().out.startswith("# late@2\n\nREADY, alias 'champion'")


def test_an_audit_names_what_was_changed(platform: Any, model: str, capsys: Any):
    assert main(("models", "audit", model)) == 0
    assert capsys.readouterr().out == "late: 4 entries and 1 files (1 bytes) are as they were written\n"
    store = platform.registry.store
    (key,) = store.list("models/late/blobs/")
    store.put(key, b"2")
    assert main(("models", "audit", model)) == 1
    assert key in capsys.readouterr().err


def test_versions_are_found_by_what_they_were_made_from(platform: Any, tmp_path: Path, capsys: Any):
    (tmp_path / "weights").write_bytes(b"w")
    registry = platform.registry
    registry.create_model("late")
    lineage = Lineage(run="r1", code="c1", datasets=[TableSnapshot(name="training/late", version=3)])
    for made_from in (lineage, Lineage(code="c2")):
        registry.create_version("late", tmp_path / "weights", lineage=made_from)
    registry.set_alias("late", "champion", 1)
    created = registry.get_version("late", 1).created_at.isoformat().replace("+00:00", "Z")
    for source in ("training/late@3", "r1", "c1"):
        assert main(("models", "made-from", source)) == 0
        assert capsys.readouterr().out.splitlines()[1].split() == [
            "late",
            "1",
            "champion",
            "champion",
            created,
        ]
    assert main(("models", "made-from", "training/late@4")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_data_of_a_version_is_shown_back_to_its_sources(
    platform: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    read = ["c.csv", "b.csv", "a.csv", "0.csv"]
    source = {
        "rows": 7,
        "first": "2024-01-01T00:00:00Z",
        "last": "2024-02-01T00:00:00Z",
        "load": 2,
        "read": read,
    }
    snapshot = {"name": "entities", "version": 1}
    training_set = {
        "rows": 5,
        "start": "2024-01-01T00:00:00Z",
        "end": "2024-02-01T00:00:00Z",
        "entities": snapshot,
    }
    training_set |= {"tables": {"flown": snapshot}, "sources": {"landing": source}}
    datasets = [
        {"table": {"name": "training/late", "version": 3}, "training_set": training_set},
        {"table": {"name": "extra", "version": 0}, "training_set": None},
    ]
    monkeypatch.setattr(
        "toque.ray_apps.cli.commands.models.call",
        lambda *_: {"datasets": datasets if platform else []},
    )
    assert main(("models", "origins", "late", "1")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == [
        "training set",
        "entities",
        "feature view",
        "batch source",
        "table",
    ]
    assert "c.csv, b.csv, a.csv and 1 more" in lines[4]
    assert "training/late@3" in lines[1]
