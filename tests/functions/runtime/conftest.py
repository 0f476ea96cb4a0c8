"""Fixtures: a store for each test, the two backends of runs, and a file that runs write to."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import until
from toque.functions import Context, use_context
from toque.functions.runtime.durable.invocation import executor_of
from toque.registry import open_store


@pytest.fixture
def used(tmp_path: Path) -> Iterator[Context]:
    url = f"file://{tmp_path / 'store'}"
    with use_context(Context(open_store(url), url, actor="ada")) as context:
        yield context
        executor_of(context).close()


@pytest.fixture(
    scope="module", params=["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])]
)
def backend(request: pytest.FixtureRequest, shared_ray: Callable[[int], None]) -> str:
    if request.param == "ray":
        shared_ray(4)
    return str(request.param)


@pytest.fixture
def traces(tmp_path: Path) -> "Traces":
    return Traces(tmp_path / "traces")


class Traces:
    """File of words that runs append, from any process."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def read(self) -> list[str]:
        path = Path(self.path)
        return path.read_text().split() if path.exists() else []

    def wait_for(self, count: int) -> list[str]:
        until(lambda: len(self.read()) >= count)
        return self.read()


@pytest.fixture
def eventually() -> Callable[..., float]:
    return until
