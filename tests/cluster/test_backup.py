"""A platform is backed up while it answers, and its backup makes a store that lacks nothing of the time before."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster import roles
from tests.cluster.cluster import Cluster
from tests.cluster.figures import logged

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

RATE, BEFORE_S = 50.0, 10.0
BACKUP, RESTORED = "backup", "restored"
REQUEST_WITHIN_S = 1.0
"""What was asked so long before the backup began was answered before it."""


def test_a_backup_under_load_holds_all_that_was_answered_before_it(
    cluster: Cluster, report: Callable[[str, dict[str, Any]], None]
) -> None:
    backup, restored = (f"s3://{roles.BUCKET}/{each}" for each in (BACKUP, RESTORED))
    profile = cluster.client_profile()
    with cluster.load(cluster.workers, 600, ends_with_block=True, rate=RATE) as outcomes:
        time.sleep(BEFORE_S)  # of load that the backup must hold
        begun = time.time()
        cluster.lab.run("client", "toque", "backup", backup, TOQUE_PROFILE=profile)
        backed_up = time.time()
    cluster.lab.run("client", "toque", "restore", backup, "--store", restored, TOQUE_PROFILE=profile)
    whole = time.time()
    audit = cluster.lab.run("client", "toque", "audit", "--store", restored, TOQUE_PROFILE=profile)
    answered = [each for each in outcomes if each.kind == "predict" and not each.failed]
    before = {each.name for each in answered if each.at < begun - REQUEST_WITHIN_S}
    found = logged(cluster, outcomes, RESTORED)
    report(
        "a backup under load",
        {
            "backup s": backed_up - begun,
            "restore s": whole - backed_up,
            "answered before": len(before),
            "of them missing": len(before - found.predicted),
        },
    )
    assert before
    assert before <= found.predicted
    assert not [each for each in outcomes if each.failed]
    assert not audit.startswith("0 journals"), audit
