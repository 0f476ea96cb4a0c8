"""Parts of a platform's status that only some platforms have."""

from __future__ import annotations

from pathlib import Path

from tests.ports import free_port
from toque.ray_apps.local.settings import Ports, Settings
from toque.ray_apps.local.state_file import RunningPlatform
from toque.ray_apps.local.status import PartStatus, _doors


def running(home: Path, *, streams: bool, generative: int) -> RunningPlatform:
    settings = Settings(home=home, generative=generative)
    ports = Ports(http=free_port())
    return RunningPlatform(
        settings=settings, boot="b", ports=ports, redis_url="redis://here", run_folder=home, streams=streams
    )


def test_consumers_of_streams_and_the_door_of_language_models_are_parts_where_they_were_started(
    tmp_path: Path,
):
    assert list(_doors(running(tmp_path, streams=False, generative=0), [])) == []
    found = running(tmp_path, streams=True, generative=1)
    where = "consumers of the projects' streams"
    doors = PartStatus(name="language models", up=False, where=f"{found.url}/v1")
    assert list(_doors(found, [])) == [PartStatus(name="streams", up=False, where=where), doors]
    alive = ["ray::ServeReplica:streams:StreamsReplica"]
    assert list(_doors(found, alive)) == [PartStatus(name="streams", up=True, where=where), doors]
