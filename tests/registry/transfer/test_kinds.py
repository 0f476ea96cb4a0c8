"""What of a store belongs to running processes, and so stays out of a copy."""

from __future__ import annotations

import pytest

from toque.registry.transfer.inventory import Kind, kind_of


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("leaders/ticker/00000007", Kind.LEFT_OUT),
        ("workspaces/payments/leaders/ticker/00000007", Kind.LEFT_OUT),
        ("invocations/i-1/lease.json", Kind.LEFT_OUT),
        ("probes/deploy", Kind.LEFT_OUT),
        ("models/late/entries/00000001.json", Kind.ENTRY),
        ("tables/flights.delta/_delta_log/00000000000000000003.json", Kind.COMMIT),
        ("tables/flights.delta/part-1.parquet", Kind.CONTENT),
        ("schedules/cursor.json", Kind.STATE),
    ],
)
def test_a_key_tells_its_kind(key: str, kind: Kind) -> None:
    assert kind_of(key) is kind
