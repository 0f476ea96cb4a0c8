"""A long history of few rows a day lies in few files, and reads as it did; rows that expire lie by the day."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from toque.featurestore import Entity, FeatureStore, FeatureView, Field, Float64
from toque.registry.store import Table

START = datetime(2010, 1, 1, tzinfo=UTC)
DAYS, A_DAY = 1_200, 8


def history(days: int = DAYS) -> pa.Table:
    times = [START + timedelta(hours=3 * number) for number in range(days * A_DAY)]
    return pa.table(
        {
            "house": [f"h{number % 5}" for number in range(len(times))],
            "price": [float(number) for number in range(len(times))],
            "event_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )


@pytest.mark.parametrize(
    ("ttl", "days", "files"), [(None, DAYS, 4), (timedelta(days=9), 60, 60), (None, 30, 30)]
)
def test_a_load_writes_few_files_unless_rows_expire(
    offline_fs: FeatureStore, ttl: timedelta | None, days: int, files: int
) -> None:
    view = FeatureView("prices", [Entity("house")], [Field("price", Float64)], ttl=ttl)
    offline_fs.apply([view])
    offline_fs.write_offline(view, history(days))
    version = offline_fs.offline.version(view)
    assert version is not None
    assert len(version.files) == files
    assert all(file.may_hold(file.first, file.first) for file in version.files)


def test_rows_in_the_files_of_a_month_are_read_as_of_any_time(offline_fs: FeatureStore) -> None:
    view = FeatureView("prices", [Entity("house")], [Field("price", Float64)])
    offline_fs.apply([view])
    offline_fs.write_offline(view, history())
    first = list(range(0, DAYS * A_DAY, 997))
    asked = pa.table(
        {
            "house": [f"h{number % 5}" for number in first],
            "event_timestamp": pa.array(
                [START + timedelta(hours=3 * number) for number in first], pa.timestamp("us", "UTC")
            ),
        }
    )
    found = offline_fs.get_historical_features(asked, features=["prices:price"]).to_arrow()
    assert found["price"].to_pylist() == [float(number) for number in first]
    assert (
        offline_fs.offline.read(
            view, start=START + timedelta(days=40), end=START + timedelta(days=41)
        ).num_rows
        == 9
    )


def test_a_writer_that_saw_no_table_finds_the_one_that_another_has_widened(
    offline_fs: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = FeatureView("prices", [Entity("house")], [Field("price", Float64)])
    offline_fs.apply([view])
    offline_fs.offline.note_created(view)  # adds a column to the table that it makes
    before = offline_fs.offline.table(view).version()
    with monkeypatch.context() as late:
        late.setattr(Table, "exists", lambda _: False)
        offline_fs.offline.create(view)
    assert offline_fs.offline.table(view).version() == before
