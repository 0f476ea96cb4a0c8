"""`toque store copy`, `toque store backup` and `toque store restore`."""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.redis_server import running_redis
from toque.ray_apps.cli import main
from toque.ray_apps.cli.commands.history import address_of
from toque.registry import Journal, ObjectStore, open_store


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv(
        "TOQUE_HOME", str(tmp_path / "home")
    )  # whose checkout has run a platform has audit keys
    store = open_store(f"file://{tmp_path}/source")
    for name in range(40):
        journal = Journal(store, f"events/topic-{name}", actor="ada")
        for number in range(5):
            journal.append({"text": "x" * 100}, at=number)
    return store


def test_a_copy_killed_by_force_is_taken_up_again(
    source: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["store", "copy", source.url, str(tmp_path / "target")]
    process = subprocess.Popen(
        [sys.executable, "-m", "toque.ray_apps.cli", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    while "journals" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert main([*words, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["verified"]["journals"], done["verified"]["entries"], done["verified"]["findings"]) == (
        40,
        200,
        [],
    )


def test_backup_and_restore_go_there_and_back(
    source: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    backup, place = str(tmp_path / "backup"), f"file://{tmp_path}/new"
    with running_redis(tmp_path / "redis") as server:
        assert main(["backup", backup, "--store", source.url, "--redis", server.url]) == 0
    assert "200 entries" in capsys.readouterr().out
    assert main(["backup", backup, "--store", source.url, "--no-redis", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objects"] == 0
    assert main(["restore", backup, "--store", place]) == 0
    kept = [
        key for key in source.list("") if key != "copies/last-backup"
    ]  # a restored store has no backup yet
    assert list(open_store(place).list("")) == kept


def test_a_backup_must_be_told_of_redis(
    source: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TOQUE_REDIS_URL", raising=False)
    words = ["--home", str(tmp_path / "home"), "backup", str(tmp_path / "backup"), "--store", source.url]
    assert main(words) == 2
    assert "--no-redis" in capsys.readouterr().err


def test_what_does_not_verify_is_said(
    source: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    key = "events/topic-1/entries/00000002.json"
    source.put(key, source.get(key).replace(b"ada", b"eve"))
    assert main(["store", "copy", source.url, str(tmp_path / "target")]) == 1
    told = capsys.readouterr()
    assert "events/topic-1 entry 2" in told.out
    assert "do not use" in told.err


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://backups/a", "s3://backups/a?region=lab&endpoint=http://s3:8333"),
        ("s3://backups/a?region=eu-west-1", "s3://backups/a?region=eu-west-1"),
        ("file:///backups", "file:///backups"),
        ("/backups", "file:///backups"),
    ],
)
def test_a_bucket_is_one_at_the_server_of_the_platform(
    text: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOQUE_STORE", "s3://toque/prod?region=lab&endpoint=http://s3:8333&sse=AES256")
    given = argparse.Namespace(home=str(tmp_path))
    assert address_of(given, text) == address
    monkeypatch.setenv("TOQUE_STORE", f"file://{tmp_path}")
    assert address_of(given, "s3://backups/a") == "s3://backups/a"
