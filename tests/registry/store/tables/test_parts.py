import pyarrow as pa
import pytest

from toque.registry import InvalidInput, Table, open_store
from toque.registry.store import overwrite_with_parts, write_part


def rows(first: int) -> pa.Table:
    return pa.table({"n": list(range(first, first + 2)), "at": pa.array([0, 1], pa.timestamp("us", "UTC"))})


@pytest.fixture
def table(store_url: str) -> Table:
    return Table(open_store(store_url), "parts")


def test_parts_replace_all_rows_and_the_schema_in_one_commit(table):
    table.create(rows(0).schema)
    parts = [write_part(table, rows(first)) for first in range(0, 60, 2)]
    assert table.read().num_rows == 0  # until they are committed
    first = overwrite_with_parts(table, parts[:1], rows(0).schema)
    second = overwrite_with_parts(table, parts[1:], rows(0).schema, metadata={"made": "by a test"})
    assert (first.version, second.version) == (1, 2)
    assert table.read()["n"].to_pylist() == list(range(2, 60))  # in the order of the parts
    assert table.read(version=1)["n"].to_pylist() == [0, 1]
    assert table.metadata() == {"made": "by a test"}
    table.append(rows(90))
    assert table.read().num_rows == 60
    other = pa.table({"text": ["a"]})
    overwrite_with_parts(table, [write_part(table, other)], other.schema)
    assert table.read().equals(other)


def test_times_without_a_zone_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"'at' is timestamp.* without a timezone"):
        write_part(
            Table(open_store(f"file://{tmp_path}"), "t"), pa.table({"at": pa.array([0], pa.timestamp("us"))})
        )
