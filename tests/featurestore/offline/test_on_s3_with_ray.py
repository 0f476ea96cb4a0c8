"""A distributed write whose credentials end while it runs: renewed in workers and driver, and encrypted as the store says."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pyarrow as pa
import pytest
import ray

from tests.registry.short_lived_credentials import ShortLived, short_lived
from toque.featurestore import Entity, FeatureStore, FeatureView, Field, Float64
from toque.featurestore.offline import distributed
from toque.registry import open_store

pytestmark = pytest.mark.ray
NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)
KMS_KEY = "arn:aws:kms:eu-central-1:123456789012:key/toque"
view = FeatureView("late", [Entity("plane")], [Field("x", Float64)])


@pytest.fixture
def credentials(tmp_path: Path) -> Iterator[tuple[ShortLived, str]]:
    with short_lived(tmp_path) as given:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield given
        ray.shutdown()


def test_a_write_goes_on_when_its_credentials_end(credentials: tuple[ShortLived, str]) -> None:
    keys, url = credentials
    file = keys.file
    fs = FeatureStore(open_store(f"{url}&sse=aws:kms&kms_key={KMS_KEY}"), clock=lambda: NOW, actor="ada")
    fs.apply([view])

    def end_credentials(rows: pa.Table) -> pa.Table:
        file.write_text("KEY-of-another-hour")
        return rows

    times = pa.array([NOW] * 20, pa.timestamp("us", "UTC"))
    columns = {
        "plane": [f"N{n}" for n in range(20)],
        "x": [float(n) for n in range(20)],
        "event_timestamp": times,
    }
    rows = ray.data.from_arrow(pa.table(columns)).map_batches(end_credentials, batch_format="pyarrow")
    distributed.write_offline(fs, view, rows)
    assert file.read_text() == "KEY-of-another-hour"
    assert fs.offline.read(view).num_rows == 20
    store = fs.offline_table(view).store
    keys_written = [key for key in store.list("tables/") if key.endswith((".parquet", ".json"))]
    client = boto3.session.Session().client(
        "s3", endpoint_url=url.partition("endpoint=")[2], region_name="eu-central-1"
    )
    for key in keys_written:
        head = client.head_object(Bucket="toque", Key=f"store/{key}")
        assert head.get("SSEKMSKeyId") == KMS_KEY, key
    assert any(key.endswith(".parquet") for key in keys_written)
