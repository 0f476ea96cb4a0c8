import time

import numpy as np
import pyarrow as pa
import pytest

from toque.registry import Table, open_store
from toque.registry.store import PinnedRows


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    made = Table(open_store(f"file://{tmp_path_factory.mktemp('store')}"), "rows")
    for day, count in (("a", 70_000), ("b", 3), ("a", 500), ("c", 90_000)):
        numbers = np.random.default_rng(count).integers(0, 1 << 40, count)
        made.append(pa.table({"n": numbers, "day": [day] * count}), partition_by=["day"])
    return made


@pytest.mark.parametrize(
    "bounds", [(0, 160_503), (0, 1), (160_502, 160_503), (89_990, 90_510), (69_000, 69_007), (5, 5)]
)
@pytest.mark.parametrize("rows", [1, 7_000, 65_536, 1_000_000])
def test_ranges_are_the_rows_of_a_read_by_their_numbers(table, bounds, rows):
    if rows == 1 and bounds[1] - bounds[0] > 1_000:
        return
    pinned, whole = table.pinned(), table.read()
    assert pinned.count == whole.num_rows
    slices = list(pinned.slices(*bounds, rows=rows, columns=["day", "n"]))
    assert all(each.num_rows == rows for each in slices[:-1])
    got = pa.concat_tables(slices).to_pydict() if slices else {"day": [], "n": []}
    assert got == whole.slice(bounds[0], bounds[1] - bounds[0]).select(["day", "n"]).to_pydict()


def test_only_row_groups_that_overlap_are_read(tmp_path, monkeypatch):
    made = Table(open_store(f"file://{tmp_path}"), "rows")
    made.append(pa.table({"n": np.arange(3_000_000)}))
    rows_read: list[int] = []
    read = PinnedRows._read

    def spied(self, group, names):
        found = read(self, group, names)
        rows_read.append(found.num_rows)
        return found

    monkeypatch.setattr(PinnedRows, "_read", spied)
    (got,) = made.pinned().slices(1_500_000, 1_500_010, rows=10)
    assert got["n"].to_pylist() == list(range(1_500_000, 1_500_010))
    assert len(rows_read) == 1
    assert rows_read[0] < 3_000_000


def test_a_slow_reader_holds_two_row_groups(tmp_path):
    made = Table(open_store(f"file://{tmp_path}"), "rows")
    made.append(
        pa.table(
            {f"x{number}": np.random.default_rng(number).standard_normal(800_000) for number in range(22)}
        )
    )
    pa.default_memory_pool().release_unused()
    before, held = pa.total_allocated_bytes(), []
    for _ in made.batches():
        time.sleep(0.05)  # as long as a reader that computes takes
        held.append(pa.total_allocated_bytes() - before)
    assert max(held) < 5 * (16 << 20)  # of one that is being read also the bytes of the file


@pytest.mark.parametrize("write", [Table.append, Table.overwrite])
def test_row_groups_are_of_a_size_in_memory_so_that_readers_hold_little(tmp_path, write):
    made = Table(open_store(f"file://{tmp_path}"), "rows")
    columns = {f"x{number}": np.random.default_rng(number).standard_normal(250_000) for number in range(22)}
    write(made, pa.table(columns))
    (file,) = made.dataset().get_fragments()
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    assert sum(group.num_rows for group in groups) == 250_000
    assert max(group.num_rows for group in groups) * 22 * 8 <= 16 << 20
    assert groups[0].column(0).compression == "SNAPPY"
