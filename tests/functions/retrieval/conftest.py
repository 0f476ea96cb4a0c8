from collections.abc import Iterator
from pathlib import Path

import pytest

from toque.functions import Context, use_context
from toque.registry import open_store


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """A context with an empty store."""
    url = f"file://{tmp_path}/store"
    with use_context(Context(store=open_store(url), store_url=url, actor="ada")) as made:
        yield made
