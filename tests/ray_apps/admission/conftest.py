from pathlib import Path

import pytest

from toque.registry import ObjectStore, open_store


@pytest.fixture
def folder_store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")
