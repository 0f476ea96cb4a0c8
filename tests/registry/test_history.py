"""Audits and published heads over a whole store, in a folder and in a bucket."""

import uuid
from pathlib import Path

import boto3
import pytest

from toque.registry import Access, InvalidInput, Journal, ObjectStore, Registry, open_store, utc_now
from toque.registry.access import workspace_store
from toque.registry.audit_keys import AuditKeys
from toque.registry.history import adopt_all, audit, publish_heads, read_published
from toque.registry.journal import high_water
from toque.registry.journal.deletions import Deletions
from toque.registry.journal.heads import journal_counts

KEYS = AuditKeys(["ab" * 32])


@pytest.fixture
def platform(store_url: str, model_files: Path) -> ObjectStore:
    """A platform with each kind of journal that the registry keeps, and a second workspace."""
    store = open_store(store_url, audit_keys=KEYS)
    reg = Registry(store, actor="ada")
    reg.create_model("m")
    for _ in range(2):
        reg.create_version("m", model_files)
    reg.set_alias("m", "champion", 1)
    reg.create_experiment("exp", title="Delays")
    reg.start_run("exp").finish()
    Access(store, actor="root").create_token("ada", "viewer")
    Journal(store, "alarms/m", actor="ada").append({"n": 1}, at=0)
    store.put("tables/predictions/m.delta/entries/00000000.json", b"not a journal")
    team = workspace_store(store, "team")
    Registry(team, actor="bob").create_model("m")
    team.put("tables/predictions/m.delta/entries/00000000.json", b"not a journal")
    return store


def test_every_journal_of_every_workspace_is_read(platform: ObjectStore):
    counts = journal_counts(platform)
    assert counts["models/m/journal"] == 4
    assert {"access/journal", "alarms/m", "experiment-notes/journal", "experiments/exp/journal"} < set(counts)
    assert not any(path.startswith(("tables", "workspaces")) for path in counts)
    report = audit(platform)
    assert report.findings == ()
    assert report.journals == len(counts) + 1
    assert report.entries == sum(counts.values()) + 1
    assert audit(platform, model="m").journals == 2


def test_published_heads_are_compared_in_every_workspace(platform: ObjectStore, store_url: str):
    target = open_store(store_url).within("elsewhere")
    for _ in range(2):
        publish_heads(platform, target, utc_now)
    heads, problems = read_published(target, KEYS)
    assert (len(heads), problems) == (2, [])
    Registry(platform, actor="ada").set_alias("m", "champion", 2)
    report = audit(platform, heads=heads)
    assert (report.findings, report.heads) == ((), report.journals)
    platform.delete("workspaces/team/models/m/journal/entries/00000000.json")
    platform.delete("models/m/journal/entries/00000004.json")
    platform.delete("models/m/journal/entries/00000003.json")
    high_water.forget()  # as on a machine that never saw the journals
    assert audit(platform).findings == ()
    assert audit(platform, heads=heads).findings == (
        "models/m/journal ends after 3 entries; 4 were recorded",
        "workspaces/team/models/m/journal is gone; it had 1 entries",
    )


def test_an_invocation_that_was_deleted_on_purpose_is_not_missed(platform: ObjectStore, store_url: str):
    target = open_store(store_url).within("elsewhere")
    for name in ("deleted", "taken", "again"):
        Journal(platform, f"invocations/{name}", actor="ada").append({"n": 1}, at=0)
    publish_heads(platform, target, utc_now)
    heads, _ = read_published(target, KEYS)
    for name in ("deleted", "taken", "again"):
        platform.delete(f"invocations/{name}/entries/00000000.json")
    deletions = Deletions(platform, actor="ada")
    deletions.record(["invocations/deleted", "models/m/journal"])  # of a night of retention
    deletions.record(["invocations/again"])
    Journal(platform, "invocations/again", actor="ada").append({"n": 2}, at=0)
    assert audit(platform, heads=heads).findings == ("invocations/taken is gone; it had 1 entries",)
    platform.delete("models/m/journal/entries/00000003.json")  # only invocations are ever deleted
    assert "models/m/journal ends after 3 entries; 4 were recorded" in audit(platform, heads=heads).findings


def test_a_journal_that_began_anew_is_found_by_its_head(platform: ObjectStore, store_url: str):
    target = open_store(store_url).within("elsewhere")
    publish_heads(platform, target, utc_now)
    platform.delete("alarms/m/entries/00000000.json")
    Journal(platform, "alarms/m", actor="eve").append({"n": 2}, at=0)
    heads, _ = read_published(target, KEYS)
    assert audit(platform, heads=heads).findings == (
        "alarms/m entry 0 is not the one whose digest was recorded",
    )


def test_heads_are_published_with_a_key_only(store_url: str):
    with pytest.raises(InvalidInput, match="no audit key"):
        publish_heads(open_store(store_url), open_store(store_url).within("elsewhere"), utc_now)


def test_an_entry_that_cannot_be_folded_is_a_finding_and_the_others_are_read(store_url: str):
    store = open_store(store_url)
    Registry(store, actor="ada").create_model("fine")
    Journal(store, "models/odd/journal", actor="eve").append({"kind": "of another world"}, at=0)
    report = audit(store)
    assert report.unsigned
    assert len(report.findings) == 1
    assert "models/odd/journal" in report.findings[0]


def test_adoption_covers_every_workspace(store_url: str):
    store = open_store(store_url)
    for opened in (store, workspace_store(store, "team")):
        Registry(opened, actor="ada").create_model("m")
    keyed = open_store(store_url, audit_keys=KEYS)
    assert len(audit(keyed).findings) == 2
    assert adopt_all(keyed, utc_now) == 2
    assert audit(keyed).findings == ()


def test_a_bucket_with_object_lock_keeps_what_is_published(s3_endpoint: str, folder_url: str):
    bucket = f"locked-{uuid.uuid4().hex[:8]}"
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    retention = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
    client.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": retention}
    )
    store = open_store(folder_url, audit_keys=KEYS)
    Registry(store, actor="ada").create_model("m")
    target = open_store(f"s3://{bucket}?endpoint={s3_endpoint}")
    key = publish_heads(store, target, utc_now)
    assert client.head_object(Bucket=bucket, Key=key)["ObjectLockMode"] == "COMPLIANCE"
    heads, _ = read_published(target, KEYS)
    assert heads[0].journals["models/m/journal"].count == 1
