"""Order of a table's rows: it follows from the appends alone, in every process."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from toque.registry import ObjectStore, Table, open_store
from toque.registry.store.tables import table as table_module

DAYS = 24
PROGRAM = """
import sys
from pathlib import Path
from toque.registry import open_store
from tests.registry.store.tables.test_row_order import appended, read_everywhere

print(read_everywhere(appended(open_store(Path(sys.argv[1]).as_uri()))))
"""


def appended(store: ObjectStore) -> Table:
    """Append twice to a table of many days; the second time the days come backwards."""
    table = Table(store, "events/by-day")
    for first, days in ((0, range(DAYS)), (1_000, reversed(range(DAYS)))):
        names = [f"2024-01-{day + 1:02}" for day in days for _ in range(3)]
        rows = pa.table({"number": range(first, first + len(names)), "day": names})
        table.append(rows, partition_by=["day"])
    return table


def read_everywhere(table: Table) -> list[int]:
    """Numbers in the order of `read`, once every other reader was seen to have the same."""
    numbers: list[int] = table.read()["number"].to_pylist()
    version = table.version()
    pinned = table.pinned(version).slices(0, len(numbers), rows=7)
    assert pa.concat_tables(pinned)["number"].to_pylist() == numbers
    assert pa.concat_tables(table.batches())["number"].to_pylist() == numbers
    assert table.head(10)["number"].to_pylist() == numbers[:10]
    return numbers


def test_equal_appends_give_equal_orders_in_every_process(tmp_path: Path):
    orders = {f"{read_everywhere(appended(open_store(tmp_path.as_uri())))}\n"}
    for seed in ("0", "1"):
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / seed)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        orders.add(ran.stdout)
    by_day = [
        number
        for day in range(DAYS)
        for first in (1_000 + (DAYS - 1 - day) * 3, day * 3)  # the newest append first
        for number in range(first, first + 3)
    ]
    assert orders == {f"{by_day}\n"}


def test_the_log_itself_has_the_partitions_in_any_order(tmp_path: Path):
    """Fails once the library orders them, and then the sort may go."""
    logged = []
    for number in range(4):
        table = appended(open_store((tmp_path / str(number)).as_uri()))
        fragments = DeltaTable(table.uri).to_pyarrow_dataset().get_fragments()
        logged.append([fragment.path.partition("/")[0] for fragment in fragments])
    assert any(each != logged[0] for each in logged)


@pytest.mark.parametrize("most_bytes", [1 << 31, 100])
def test_rows_of_many_batches_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int
):
    """Delta's writer takes the batches in any order. Texts of more bytes than one batch can hold are stored all the same."""
    monkeypatch.setattr(table_module, "_MOST_BYTES", most_bytes)
    table = Table(open_store(tmp_path.as_uri()), "training/many")
    cuts = [0, 4_000, 4_001, 30_000, 33_000, 60_000]
    parts = [
        pa.table({"number": range(start, stop), "text": [f"row {at}" for at in range(start, stop)]})
        for start, stop in pairwise(cuts)
    ]
    rows = pa.concat_tables(parts)
    for _ in range(4):
        table.overwrite(rows)
        table.append(rows)
        read = table.read()
        assert read["number"].to_pylist() == [*range(cuts[-1])] * 2
        assert read["text"][cuts[-1] - 1].as_py() == f"row {cuts[-1] - 1}"
        assert read.schema == rows.schema
