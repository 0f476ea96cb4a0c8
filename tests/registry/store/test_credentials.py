"""Objects and tables are reached by the url's settings and boto3's credentials, which are renewed while they are in use."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from tests.registry.short_lived_credentials import ShortLived, short_lived
from toque.registry import Forbidden, Table, open_store
from toque.registry.store import check_store
from toque.registry.store.tables.files import file_system


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ShortLived, str]]:
    with short_lived(tmp_path_factory.mktemp("keys")) as given:
        yield given


def test_region_and_endpoint_of_the_url_reach_every_client(credentials: tuple[ShortLived, str]) -> None:
    url = credentials[1]
    store = pickle.loads(pickle.dumps(open_store(url)))  # noqa: S301  # its own bytes
    assert (store.url, store.within("a").url) == (url, url.replace("?", "/a?"))
    assert store._client.meta.region_name == "eu-central-1"
    options = store.table_location("rows")[1]
    assert options["AWS_REGION"] == "eu-central-1"
    assert f"endpoint={options['AWS_ENDPOINT_URL']}" in url


def test_a_store_goes_on_when_its_credentials_end(credentials: tuple[ShortLived, str]) -> None:
    keys, url = credentials
    store = open_store(url)
    table = Table(store, "rows")
    store.put("a", b"1")
    table.append(pa.table({"x": [1]}))
    keys.end_credentials()
    assert store.get("a") == b"1"
    assert table.append(pa.table({"x": [2]})).version == 2
    check_store(store)


def test_a_table_that_stays_open_renews_its_credentials(credentials: tuple[ShortLived, str]) -> None:
    keys, url = credentials
    table = Table(open_store(url), "kept")
    table.append(pa.table({"x": [1, 2]}))
    dataset = table.dataset()
    keys.end_credentials()
    assert sorted(dataset.to_table().column("x").to_pylist()) == [1, 2]
    sent = pickle.loads(pickle.dumps(dataset))  # noqa: S301  # its own bytes
    keys.end_credentials()
    assert sent.count_rows() == 2


def test_files_can_be_written_by_paths_from_the_bucket(credentials: tuple[ShortLived, str]) -> None:
    keys, url = credentials
    files = file_system(open_store(url), "written")
    keys.end_credentials()
    with files.open_output_stream("toque/store/tables/written.delta/part") as sink:
        sink.write(b"rows")
    info = files.get_file_info("part")
    assert (info.type, info.size) == (fs.FileType.File, 4)


def test_credentials_that_cannot_be_had_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(
        Forbidden, match=r"no credentials for .*; set AWS_ACCESS_KEY_ID and its secret or AWS_PROFILE, or"
    ):
        open_store("s3://bucket/x?endpoint=http://127.0.0.1:9").get("a")
