import pytest

from toque.ray_apps.cli.commands.machine import explained
from toque.ray_apps.cli.errors import Failed
from toque.registry import open_store


def test_a_store_that_cannot_be_opened_is_a_message_and_no_traceback() -> None:
    with pytest.raises(Failed, match="colour"), explained():
        open_store("s3://bucket/prefix?colour=red")
