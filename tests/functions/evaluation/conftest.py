import pytest

from functions import Context, use_context
from registry import open_store


@pytest.fixture
def kitchen(tmp_path):
    """A context with an empty store."""
    url = f"file://{tmp_path}/store"
    context = Context(store=open_store(url), store_url=url, actor="cook")
    with use_context(context):
        yield context
