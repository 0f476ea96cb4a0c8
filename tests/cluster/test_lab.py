"""The laboratory itself: what its machines share, and what power, disk and cable mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.cluster import roles
from tests.cluster.lab import Lab, until
from tests.docs.pages import all_pages

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture
def pair(_possible: None, tmp_path: Path) -> Iterator[Lab]:
    made = Lab.up(tmp_path / "lab")
    made.add("one", roles.Bare())
    made.add("two", roles.Bare())
    yield made
    made.down()


def test_machines_share_the_network_and_no_folder_that_can_be_written(pair: Lab) -> None:
    pair.run("one", "sh", "-ec", "echo here > /tmp/file; echo here > /dev/shm/file; test $(hostname) = one")
    assert pair.run("two", "sh", "-c", "cat /tmp/file /dev/shm/file 2>/dev/null || echo none") == "none\n"
    with pytest.raises(RuntimeError, match="Read-only file system"):
        pair.run("two", "touch", "/etc/toque")
    probe = "import socket; socket.create_connection(('two', 1), 2)"
    with pytest.raises(RuntimeError, match="Connection refused"):  # it is there, and nothing listens
        pair.run("one", "python", "-c", probe)


def test_a_machine_keeps_no_process_that_has_ended(pair: Lab) -> None:
    orphan = pair.run("one", "sh", "-c", "sleep 0.01 > /dev/null & echo $!").strip()
    until(
        lambda: orphan not in pair.run("one", "ps", "-eo", "pid").split(),
        "a process without a parent is gone",
    )


def test_a_cut_machine_runs_on_unseen_and_comes_back(pair: Lab) -> None:
    with pair.start("two", "python", "-m", "http.server", "8000"):
        until(lambda: pair.reachable("two", 8000, refused=False), "its server answers")
        pair.cut("two")
        assert not pair.reachable("two")
        assert "here" in pair.run("two", "echo", "here")
        pair.heal("two")
        assert pair.reachable("two", 8000, refused=False)
        pair.kill("two")


@pytest.mark.parametrize("keep_disk", [True, False])
def test_a_machine_without_power_is_gone_with_or_without_its_disk(pair: Lab, *, keep_disk: bool) -> None:
    pair.run("two", "sh", "-c", "echo here > /tmp/file")
    with pair.start("two", "sleep", "1000") as process:
        pair.kill("two", keep_disk=keep_disk)
        assert process.wait(10) != 0
    assert not pair.reachable("two")
    pair.add("two")
    assert pair.run("two", "sh", "-c", "cat /tmp/file || echo none") == ("here\n" if keep_disk else "none\n")


def test_a_redis_comes_back_with_its_data_and_is_followed_by_another(pair: Lab) -> None:
    pair.add("redis", roles.Redis(options=("--appendfsync", "always")))
    pair.add("copy", roles.Redis(replica_of="redis"))
    with pair.network():
        redis.Redis.from_url(roles.redis_url(pair)).set("key", "value")
    pair.kill("redis", keep_disk=True)
    pair.add("redis")
    with pair.network():
        assert redis.Redis.from_url(roles.redis_url(pair)).get("key") == b"value"
        copy = redis.Redis.from_url(roles.redis_url(pair, "copy"))
        until(lambda: copy.info("replication")["master_link_status"] == "up", "the copy follows")
        assert copy.get("key") == b"value"


def test_labs_do_not_meet_and_one_that_is_down_leaves_nothing(pair: Lab, tmp_path: Path) -> None:
    other = Lab.up(tmp_path / "other")
    machine = other.add("three", roles.Bare())
    assert machine.address == pair.address("one")
    assert other.run("three", "hostname") == "three\n"
    other.down()
    assert not Lab.find(tmp_path / "other").machines["three"].is_up
    assert pair.machines["one"].is_up


@pytest.mark.usefixtures("_possible")
def test_the_code_of_its_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = next(each for each in all_pages() if each.path.name == "testing-many-machines.md")
    monkeypatch.chdir(tmp_path)
    for block in page.blocks:
        if block.language == "python":
            exec(block.text, {})  # noqa: S102  # our own page
    assert capsys.readouterr().out == "redis\nTrue\n"
