"""A request for a table that the store does not answer is an error of the store, as one for an object is."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.registry import s3_servers
from toque.registry import Forbidden, ObjectStore, Table, Unavailable, open_store

ROWS = pa.table({"x": [1, 2]})


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ObjectStore, Path]]:
    """A store whose server answers writes with the status in a file."""
    status = tmp_path_factory.mktemp("refusing") / "status"
    status.touch()
    with pytest.MonkeyPatch.context() as patched, s3_servers.moto(f"--refuse-writes={status}") as endpoint:
        for name, value in {
            "ACCESS_KEY_ID": "k",
            "SECRET_ACCESS_KEY": "s",
            "DEFAULT_REGION": "us-east-1",
        }.items():
            patched.setenv(f"AWS_{name}", value)
        s3_servers.create_bucket(endpoint, "refusing")
        yield open_store(f"s3://refusing/store?endpoint={endpoint}"), status


@pytest.fixture
def table(refusing: tuple[ObjectStore, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """A table with two rows, whose failed requests are not tried again."""
    store, status = refusing
    found = Table(store, "rows")
    found.overwrite(ROWS)
    location, options = store.table_location("rows")
    monkeypatch.setattr(type(store), "table_location", lambda *_: (location, options | {"max_retries": "0"}))
    yield found
    status.write_text("")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("503 Slow Down", Unavailable),
        ("500 Internal Server Error", Unavailable),
        ("403 Forbidden", Forbidden),
    ],
)
def test_a_write_that_the_store_does_not_take_says_so_and_the_next_is_taken(
    refusing: tuple[ObjectStore, Path], table: Table, answer: str, error: type[Exception]
) -> None:
    before, status = table.version(), refusing[1]
    status.write_text(answer)
    with pytest.raises(error, match="table rows: s3://refusing"):
        table.append(ROWS)
    assert table.version() == before
    status.write_text("")
    table.append(ROWS)
    assert table.read().num_rows == 2 * ROWS.num_rows


def test_a_table_of_a_store_that_does_not_answer_is_not_told_to_be_absent(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, options = table.store.table_location(table.name)
    nowhere = options | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    monkeypatch.setattr(type(table.store), "table_location", lambda *_: (location, nowhere))
    with pytest.raises(Unavailable, match="did not take a request"):
        table.version()
    with pytest.raises(Unavailable, match="did not take a request"):
        table.append(ROWS)
