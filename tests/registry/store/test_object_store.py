import os
import pickle
import threading
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path

import boto3
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError

from toque.registry import (
    AlreadyExists,
    Forbidden,
    InvalidInput,
    NotFound,
    ObjectStore,
    RegistryError,
    Table,
    Unavailable,
    open_store,
)

BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/../b",
    "a/.",
    "a\\b",
    "a\nb",
    "a\x00b",
    "\ud800",
    ".tmp/a",
    "x" * 901,
    "y" * 250,
]


def test_put_then_get_gives_the_same_bytes(store: ObjectStore):
    store.put("a/b.json", b"\x00\xff" * 100)
    assert store.get("a/b.json") == b"\x00\xff" * 100
    store.put("a/b.json", b"")
    assert store.get("a/b.json") == b""


def test_a_range_is_read_without_the_rest(store: ObjectStore):
    store.put("a/b", b"0123456789")
    assert store.find_range("a/b", 3, 4) == b"3456"
    assert store.find_range("a/b", 8, 10) == b"89"
    assert store.find_range("a/b", 10, 1) == b""
    assert store.find_range("a/b", 2, 0) == b""
    assert store.find_range("a/c", 0, 1) is None
    assert store.find_range("a/c", 0, 0) is None


def test_an_absent_object_is_not_found(store: ObjectStore):
    assert store.find("nothing/here") is None
    with pytest.raises(NotFound, match="nothing/here"):
        store.get("nothing/here")
    store.delete("nothing/here")


def test_a_scan_gives_sizes_and_times_of_the_store_s_clock(store: ObjectStore):
    store.put("a/b", b"12345")
    before = store.now()
    while store.now() <= before:
        time.sleep(0.01)
    store.put("a/c", b"")
    assert [(info.key, info.size_bytes) for info in store.scan("a/")] == [("a/b", 5), ("a/c", 0)]
    times = [info.modified_at for info in store.scan("")]
    assert times[0] <= before < times[1]
    assert times[0] == store.find_modified_at("a/b")
    assert list(store.scan("nothing/")) == []


def test_an_object_tells_when_it_was_written(store: ObjectStore):
    before = datetime.now(UTC) - timedelta(seconds=2)
    assert store.find_modified_at("a/b") is None
    store.put("a/b", b"1")
    found = store.find_modified_at("a/b")
    assert found is not None
    assert before < found < datetime.now(UTC) + timedelta(seconds=2)
    assert store.find_modified_at("a") is None


def test_create_refuses_to_overwrite(store: ObjectStore):
    store.create("a", b"1")
    with pytest.raises(AlreadyExists):
        store.create("a", b"2")
    assert store.get("a") == b"1"


def test_create_succeeds_again_after_delete(store: ObjectStore):
    store.create("a/x", b"1")
    store.delete("a/x")
    assert store.find("a/x") is None
    store.create("a/x", b"2")
    assert store.get("a/x") == b"2"


def in_order(keys: list[str], store_url: str) -> list[str]:
    """Sort keys as a store lists them: by code point, except that SeaweedFS goes folder by folder."""
    by_folder = store_url.startswith("s3") and os.environ.get("TOQUE_TEST_S3") == "seaweedfs"
    return sorted(keys, key=lambda key: key.split("/") if by_folder else [key])


def test_list_is_sorted_and_pages_after_a_key(store: ObjectStore, store_url: str):
    keys = ["m/a/1", "m/a.json", "m/a/2/z", "m/a-b", "m/a0", "m/é", "m/B", "n/1", "m/a/10"]
    for key in keys:
        store.put(key, b"")
    expected = in_order([key for key in keys if key.startswith("m/")], store_url)
    assert list(store.list("m/")) == expected
    for index, key in enumerate(expected):
        assert list(store.list("m/", after=key)) == expected[index + 1 :]
    assert list(store.list("m/a/1")) == ["m/a/1", "m/a/10"]
    assert list(store.list("m/a")) == [key for key in expected if key.startswith("m/a")]
    beyond = in_order([*expected, "m/a/1\U0010ffff"], store_url)
    assert list(store.list("m/", after="m/a/1\U0010ffff")) == beyond[beyond.index("m/a/1\U0010ffff") + 1 :]
    assert list(store.list("nowhere/")) == []
    assert list(store.list("")) == in_order(keys, store_url)


def test_a_list_on_s3_goes_beyond_one_page(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch):
    store = open_store(f"s3://toque/{uuid.uuid4().hex}?endpoint={s3_endpoint}")
    monkeypatch.setattr(store._client, "list_objects_v2", partial(store._client.list_objects_v2, MaxKeys=2))
    keys = [f"p/{number}" for number in range(5)]
    for key in keys:
        store.put(key, b"")
    assert list(store.list("p/")) == keys
    assert list(store.list("p/", after="p/0")) == keys[1:]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_that_are_paths_in_disguise_are_refused(store: ObjectStore, key: str):
    for verb in (store.find, store.delete, lambda k: store.create(k, b""), lambda k: store.put(k, b"")):
        with pytest.raises(InvalidInput):
            verb(key)


@pytest.mark.parametrize("size_bytes", [0, 1, 5 << 20, (33 << 20) + 1])
def test_upload_and_download_keep_every_byte(store: ObjectStore, tmp_path: Path, size_bytes: int):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(251)) * (size_bytes // 251) + b"x" * (size_bytes % 251))
    moved: list[int] = []
    store.upload("big/file", source, on_progress=moved.append)
    store.download("big/file", target, on_progress=moved.append)
    assert sum(moved) == 2 * size_bytes
    assert max(moved, default=0) <= 8 << 20  # in pieces
    assert target.read_bytes() == source.read_bytes()


@dataclass
class Zeros:
    """Stream of zeros. error: raised at the end."""

    size_bytes: int
    error: Exception | None = None

    def read(self, size: int = -1, /) -> bytes:
        found = bytes(self.size_bytes if size < 0 else min(size, self.size_bytes))
        self.size_bytes -= len(found)
        if self.error is not None and not self.size_bytes:
            raise self.error
        return found


@pytest.mark.parametrize("size_bytes", [0, 1, (65 << 20) + 1])
def test_a_stream_is_uploaded_whole(store: ObjectStore, size_bytes: int):
    store.upload("big/stream", Zeros(size_bytes))
    assert store.get("big/stream") == bytes(size_bytes)


@pytest.mark.parametrize("size_bytes", [1, (65 << 20) + 1])
def test_a_stream_that_breaks_leaves_nothing(store: ObjectStore, size_bytes: int):
    with pytest.raises(EOFError):
        store.upload("big/broken", Zeros(size_bytes, EOFError("the writer ended")))
    assert store.find("big/broken") is None


def test_a_failed_download_leaves_nothing(store: ObjectStore, tmp_path: Path):
    folder = tmp_path / "to"
    folder.mkdir()
    with pytest.raises(NotFound):
        store.download("nothing", folder / "file")
    assert list(folder.iterdir()) == []


def test_a_store_is_rebuilt_from_its_url_and_by_pickle(store: ObjectStore):
    store.put("a", b"1")
    assert open_store(store.url).get("a") == b"1"
    assert pickle.loads(pickle.dumps(store)).get("a") == b"1"  # noqa: S301 - our own
    assert isinstance(store, ObjectStore)


def _race(url: str, rounds: int, me: int) -> list[int]:
    store, won = open_store(url), []
    for number in range(rounds):
        try:
            store.create(f"race/{number}", str(me).encode())
        except AlreadyExists:
            continue
        won.append(number)
    return won


def test_of_many_processes_that_create_one_key_one_wins(processes: ForkServerContext, store_url: str):
    with ProcessPoolExecutor(4, mp_context=processes) as pool:
        wins = [pool.submit(_race, store_url, 25, me) for me in range(4)]
        won = sorted(number for future in wins for number in future.result())
    assert won == list(range(25))
    store = open_store(store_url)
    owners = {number: me for me, future in enumerate(wins) for number in future.result()}
    assert all(store.get(f"race/{number}") == str(me).encode() for number, me in owners.items())


def test_a_reader_never_sees_half_a_put(store: ObjectStore):
    store.put("k", b"a" * 100_000)
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(store.get("k"))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        store.put("k", bytes([97 + number % 2]) * 100_000)
    stop.set()
    reader.join()
    assert seen <= {b"a" * 100_000, b"b" * 100_000}


@pytest.mark.parametrize(
    "url",
    ["", "file:relative", "file://host/path", "http://x/y", "s3://", "s3://bucket?zone=x", "/abs/path"],
)
def test_urls_that_name_no_store_are_refused(url: str):
    with pytest.raises((InvalidInput, ValueError)):
        open_store(url)


KMS_KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def test_everything_written_to_s3_names_its_kms_key(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if os.environ.get("TOQUE_TEST_S3") == "seaweedfs":
        pytest.skip("SeaweedFS has no KMS")
    monkeypatch.setattr("toque.registry.store.s3._PART_BYTES", 5 << 20)
    url = f"s3://toque/kms-{uuid.uuid4().hex}?endpoint={s3_endpoint}&sse=aws:kms&kms_key={KMS_KEY}"
    store = pickle.loads(pickle.dumps(open_store(url)))  # noqa: S301  # its own bytes
    assert (store.url, store.within("workspaces/w").url) == (url, url.replace("?", "/workspaces/w?"))
    (tmp_path / "large").write_bytes(bytes(11 << 20))
    store.put("put", b"x")
    store.create("created", b"x")
    store.upload("uploaded", tmp_path / "large")
    Table(store, "rows").append(pa.table({"x": [1]}))
    keys = list(store.list(""))
    assert len(keys) == 3 + 3  # a table's creation, its first rows and their commit
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    for key in keys:
        head = client.head_object(Bucket="toque", Key=store._name(key))
        assert (head.get("ServerSideEncryption"), head.get("SSEKMSKeyId")) == ("aws:kms", KMS_KEY), key


@pytest.mark.parametrize("query", ["sse=none", "kms_key=k", "sse=AES256&kms_key=k"])
def test_encryption_settings_that_do_not_fit_are_refused(query: str):
    with pytest.raises(InvalidInput, match="kms_key goes with"):
        open_store(f"s3://bucket/x?{query}")


def test_a_second_session_reads_no_description_of_s3_again(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch):
    url = f"s3://toque/{uuid.uuid4().hex}?endpoint={s3_endpoint}"
    first = open_store(url)
    assert first.find("absent") is None

    def read(*_: object) -> None:
        pytest.fail("a file is read again")

    monkeypatch.setattr("botocore.loaders.JSONFileLoader.load_file", read)
    second = open_store(url)
    assert second.find("absent") is None
    assert second._session()[1] is not first._session()[1]  # each has its credentials


def test_a_missing_bucket_says_so(s3_endpoint: str):
    with pytest.raises(InvalidInput, match="bucket 'absent' does not exist"):
        open_store(f"s3://absent/x?endpoint={s3_endpoint}").put("a", b"")


def test_a_server_that_is_away_is_unavailable(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "toque.registry.store.s3._CONFIG", boto3.session.Config(retries={"total_max_attempts": 1})
    )
    with pytest.raises(Unavailable):
        open_store("s3://toque/x?endpoint=http://127.0.0.1:9").get("a")


def test_a_folder_without_permission_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    store = open_store(f"file://{tmp_path}/store")
    monkeypatch.setattr("os.link", refuse)
    with pytest.raises(Forbidden, match="check owner and mode"):
        store.create("a", b"")


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("AccessDenied", 403, Forbidden),
        ("InvalidAccessKeyId", 403, Forbidden),
        ("InternalError", 500, Unavailable),
        ("SlowDown", 503, Unavailable),
        ("PreconditionFailed", 412, AlreadyExists),
        ("EntityTooLarge", 400, RegistryError),
    ],
)
def test_answers_of_s3_become_registry_errors(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, code: str, status: int, expected: type[Exception]
):
    store = open_store(f"s3://toque/x?endpoint={s3_endpoint}")
    answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}

    def refuse(**_: object) -> None:
        raise ClientError(answer, "PutObject")

    monkeypatch.setattr(store._client, "put_object", refuse)
    with pytest.raises(expected, match=r"^a") as caught:
        store.create("a", b"")
    assert type(caught.value) is expected


def test_a_conditional_write_that_conflicts_is_retried(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch):
    store = open_store(f"s3://toque/conflict?endpoint={s3_endpoint}")
    put, tries = store._client.put_object, []

    def busy_twice(**request: object) -> object:
        tries.append(request)
        if len(tries) < 3:
            raise ClientError({"Error": {"Code": "ConditionalRequestConflict"}}, "PutObject")
        return put(**request)

    monkeypatch.setattr(store._client, "put_object", busy_twice)
    store.create("busy", b"1")
    assert store.get("busy") == b"1"
    assert len(tries) == 3
