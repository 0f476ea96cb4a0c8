"""Erasure and retention from the command line, by an admin and by nobody else."""

import json
from typing import Any

import pyarrow as pa
import pytest

from toque.functions.runtime import catalog
from toque.ray_apps.cli import main
from toque.registry import Table


def test_an_admin_erases_an_entity_and_reads_the_certificate(platform: Any, capsys: Any):
    catalog.discover(["toque.functions.maintenance.erasure.jobs"])
    table = Table(platform.context.store, "batch/late")
    table.append(pa.table({"rider": ["rider-9b7d4403", "other"]}))
    assert main(("erase", "--entity", "rider=rider-9b7d4403", "-o", "tsv")) == 0
    assert "batch/late: 1 rows" in capsys.readouterr().out
    assert table.read().to_pydict() == {"rider": ["other"]}
    assert main(("erasures", "--json")) == 0
    (certificate,) = json.loads(capsys.readouterr().out)
    assert (certificate["requested_by"], certificate["tables"]["batch/late"]["rows"]) == ("ada", 1)
    assert "rider-9b7d4403" not in json.dumps(certificate)


def test_a_dry_run_lists_what_would_go_and_why_and_erases_nothing(platform: Any, capsys: Any):
    catalog.discover(["toque.functions.maintenance.erasure.jobs"])
    table = Table(platform.context.store, "batch/late")
    table.append(
        pa.table({"unit": ["user-1234", "user-12345", "other"], "note": ["", "", "asked by user-1234"]})
    )
    platform.context.store.put("memos/score/0.json", b'{"unit": "user-1234"}')
    assert main(("erase", "--unit", "user-1234", "--dry-run", "-o", "tsv")) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["place", "goes", "stays", "why", "whose"]
    assert lines[1][:3] == ["batch/late", "1 rows", "1 rows"]
    assert "unit: 1" in lines[1][3]
    assert "text of note: 1" in lines[1][3]
    assert "unit=other" in lines[1][4]
    assert lines[2][:4] == ["memos/score/0.json", "the object", "", "names it"]
    assert table.read().num_rows == 3
    assert main(("erase", "--unit", "user-1234", "--text", "--dry-run", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["tables"]["batch/late"]["rows"] == 2
    assert main(("erase", "--unit", "user-1234")) == 0
    assert table.read().column("unit").to_pylist() == ["user-12345", "other"]


def test_an_erasure_needs_a_subject(platform: Any, capsys: Any):
    assert main(("erase",)) == 2
    assert "--entity KEY=VALUE" in capsys.readouterr().err
    assert main(("erase", "--entity", "rider")) == 2
    assert "not KEY=VALUE" in capsys.readouterr().err


def test_retention_is_set_in_days_weeks_and_years(platform: Any, capsys: Any):
    catalog.discover(["toque.functions.maintenance.retention"])
    assert main(("retention", "set", "--predictions", "90d", "--labels", "1y", "--reports", "2w")) == 0
    capsys.readouterr()
    assert main(("retention", "show", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"predictions": 90.0, "labels": 365.0, "invocations": None, "reports": 14.0}
    assert main(("retention", "set", "--labels", "soon")) == 2
    assert "90d, 12w or 1y" in capsys.readouterr().err


def test_an_operator_neither_erases_nor_sets_a_retention(
    platform: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    catalog.discover(["toque.functions.maintenance.retention", "toque.functions.maintenance.erasure.jobs"])
    assert main(("token", "create", "eve", "operator")) == 0
    monkeypatch.setenv("TOQUE_TOKEN", capsys.readouterr().out.strip())
    for command in (("erase", "--unit", "u1"), ("erasures",), ("retention", "set", "--labels", "9d")):
        assert main(command) == 1
        assert "admin" in capsys.readouterr().err
    assert list(platform.context.store.list("erasures/")) == []
