from pathlib import Path

import pytest

from toque.functions import Context, use_context
from toque.functions.maintenance.history import publish_journal_heads
from toque.functions.runtime.errors import MissingSecret
from toque.registry import open_store
from toque.registry.audit_keys import AuditKeys
from toque.registry.history import audit, read_published


def test_heads_of_all_workspaces_are_published_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url, target = f"file://{tmp_path}/store", f"file://{tmp_path}/heads"
    keys = AuditKeys(["ab" * 32])
    used = Context(open_store(url, audit_keys=keys), url, actor="tests")
    used.registry().create_model("m")
    team = used.in_workspace("team")
    team.registry().create_model("m")
    with use_context(team), pytest.raises(MissingSecret, match="TOQUE_AUDIT_HEADS"):
        publish_journal_heads()
    monkeypatch.setenv("TOQUE_AUDIT_HEADS", target)
    with use_context(team):
        key = publish_journal_heads()
    assert list(open_store(target).list("")) == [key]
    (heads,), problems = read_published(open_store(target), keys)
    assert not problems
    assert set(heads.journals) == {"models/m/journal", "workspaces/team/models/m/journal"}
    team.store.delete("models/m/journal/entries/00000000.json")
    report = audit(used.store, heads=[heads])
    assert report.findings == ("workspaces/team/models/m/journal is gone; it had 1 entries",)
