from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.functions.training.tabular_setup import examples
from toque.functions import Context, use_context
from toque.functions.model_formats.load import torch_threads
from toque.registry import Table, TableSnapshot, open_store


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that share so small a step wait for each other longer than they reckon, the more so on busy cores."""
    with torch_threads(1):
        yield


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """A context with an empty store."""
    url = f"file://{tmp_path}/store"
    with use_context(Context(store=open_store(url), store_url=url, actor="ada")) as made:
        yield made


@pytest.fixture
def training_set(context: Context) -> TableSnapshot:
    return Table(context.store, "training").append(examples())


@pytest.fixture(scope="module")
def cluster(shared_ray: Callable[[int], None]) -> None:
    """A Ray cluster of two CPUs."""
    shared_ray(2)
