from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from toque.registry import Registry, open_store


def _register(url: str, path: Path, me: int, count: int) -> list[int]:
    reg = Registry(open_store(url), actor=f"writer-{me}")
    return [reg.create_version("m", path, tags={"writer": f"{me}.{n}"}).version for n in range(count)]


def check_dense(
    processes: ForkServerContext, store_url: str, model_files: Path, *, writers: int, each: int
) -> None:
    """Register versions from several processes; check that numbers are dense and versions complete."""
    reg = Registry(open_store(store_url), actor="ada")
    reg.create_model("m")
    with ProcessPoolExecutor(writers, mp_context=processes) as pool:
        made = [pool.submit(_register, store_url, model_files, me, each) for me in range(writers)]
        numbers = sorted(number for future in made for number in future.result())
    assert numbers == list(range(1, writers * each + 1))
    tags = [version.tags["writer"] for version in reg.list_versions("m")]
    assert sorted(tags) == sorted(f"{me}.{n}" for me in range(writers) for n in range(each))
    reg.verify("m")


def test_versions_are_dense_under_concurrency(
    processes: ForkServerContext, store_url: str, model_files: Path
):
    check_dense(processes, store_url, model_files, writers=6, each=3)


@pytest.mark.proof
def test_thirty_two_processes_register_ten_versions_each(
    processes: ForkServerContext, store_url: str, model_files: Path
):
    check_dense(processes, store_url, model_files, writers=32, each=10)
