"""Erasure and retention from the command line, by an admin and by nobody else."""

import json
from typing import Any

import pyarrow as pa
import pytest

from functions.runtime import catalog
from ray_apps.cli import main
from registry import Table


def test_an_admin_erases_an_entity_and_reads_the_certificate(platform: Any, capsys: Any):
    catalog.discover(["functions.maintenance.erasure.jobs"])
    table = Table(platform.context.store, "batch/late")
    table.append(pa.table({"rider": ["rider-9b7d4403", "other"]}))
    assert main(("erase", "--entity", "rider=rider-9b7d4403", "-o", "tsv")) == 0
    assert "batch/late: 1 rows" in capsys.readouterr().out
    assert table.read().to_pydict() == {"rider": ["other"]}
    assert main(("erasures", "--json")) == 0
    (certificate,) = json.loads(capsys.readouterr().out)
    assert (certificate["requested_by"], certificate["tables"]["batch/late"]["rows"]) == ("ada", 1)
    assert "rider-9b7d4403" not in json.dumps(certificate)


def test_an_erasure_needs_a_subject(platform: Any, capsys: Any):
    assert main(("erase",)) == 2
    assert "--entity KEY=VALUE" in capsys.readouterr().err
    assert main(("erase", "--entity", "rider")) == 2
    assert "not KEY=VALUE" in capsys.readouterr().err


def test_retention_is_set_in_days_weeks_and_years(platform: Any, capsys: Any):
    catalog.discover(["functions.maintenance.retention"])
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
    catalog.discover(["functions.maintenance.retention", "functions.maintenance.erasure.jobs"])
    assert main(("token", "create", "eve", "operator")) == 0
    monkeypatch.setenv("TOQUE_TOKEN", capsys.readouterr().out.strip())
    for command in (("erase", "--unit", "u1"), ("erasures",), ("retention", "set", "--labels", "9d")):
        assert main(command) == 1
        assert "admin" in capsys.readouterr().err
    assert list(platform.context.store.list("erasures/")) == []
