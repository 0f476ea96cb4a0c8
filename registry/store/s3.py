"""An object store in an S3 bucket, through boto3: `create` is PutObject with `If-None-Match: *`.

Sessions of boto3 have credentials of their own, and share the descriptions of AWS's interfaces.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import boto3
import botocore.session
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from botocore.loaders import Loader

from toque.registry.audit_keys import AuditKeys
from toque.registry.errors import AlreadyExists, Forbidden, InvalidInput, NotFound, RegistryError, Unavailable
from toque.registry.names import check_key
from toque.registry.store.object_store import Aged, ObjectInfo
from toque.registry.store.requests import Operation
from toque.registry.store.series import observed
from toque.registry.times import CHANCE

if TYPE_CHECKING:
    from toque.registry.store.object_store import Announce, Progress, Stream


_PART_BYTES = 32 << 20
_MAX_PARTS = 9_000  # S3 allows 10,000
_STREAMED_PARTS = 3  # of a stream in memory at a time
_CONFIG = Config(
    connect_timeout=5,
    read_timeout=30,
    retries={"mode": "standard", "total_max_attempts": 4},
    max_pool_connections=32,
)
SSE = ("", "aws:kms", "aws:kms:dsse", "AES256")
"""Kinds of encryption at the server; "" leaves it to the bucket."""


_Opened = tuple[int, Any, Any]  # process, session, client
_HTTP_SERVER_ERROR = 500


class S3Store:
    """Object store under `prefix` in an S3 bucket.

    region: of the bucket; endpoint: url of an S3 server; "" for what boto3 finds in the environment and its files.
    sse: how the server encrypts what is written (`SSE`); "" for the bucket's default. kms_key: id, ARN or alias of the
    key; "" for the account's default key. audit_keys: authenticate the history in the store. announce: called with the
    store's address and the path of each journal that it appends to.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        region: str = "",
        endpoint: str = "",
        sse: str = "",
        kms_key: str = "",
        audit_keys: AuditKeys | None = None,
        announce: Announce | None = None,
    ) -> None:
        if prefix:
            check_key(prefix)
        if sse not in SSE or (kms_key and not sse.startswith("aws:kms")):
            raise InvalidInput(
                f"sse={sse!r}, kms_key={kms_key!r}: sse is one of {', '.join(filter(None, SSE))}; "
                "kms_key goes with aws:kms or aws:kms:dsse"
            )
        self._sse, self._kms_key = sse, kms_key
        self._encryption = {"ServerSideEncryption": sse} if sse else {}
        self._encryption |= {"SSEKMSKeyId": kms_key} if kms_key else {}
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._region, self._endpoint = region, endpoint
        self._audit_keys = (audit_keys or AuditKeys()).at(prefix)
        self._announce = announce
        self._lock = threading.Lock()
        self._opened: _Opened | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (
            self._bucket, self._prefix.strip("/"), self._settings, self._audit_keys, self._announce,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    @property
    def url(self) -> str:
        """URL of the store, `s3://bucket/prefix`, with the settings that were given."""
        query = "&".join(
            f"{name}={quote(value, safe=':/')}" for name, value in self._settings.items() if value
        )
        return f"s3://{self._bucket}/{self._prefix.rstrip('/')}".rstrip("/") + f"?{query}" * bool(query)

    @property
    def _settings(self) -> dict[str, str]:
        return {
            "region": self._region,
            "endpoint": self._endpoint,
            "sse": self._sse,
            "kms_key": self._kms_key,
        }

    def within(self, prefix: str) -> S3Store:
        """Open the part of this store below `prefix` as a store of its own. Raises: InvalidInput."""
        place = f"{self._prefix}{check_key(prefix)}"
        return _rebuild(self._bucket, place, self._settings, self._audit_keys, self._announce)

    @property
    def audit_keys(self) -> AuditKeys:
        """Keys that authenticate the history in the store."""
        return self._audit_keys

    def announce(self, path: str) -> None:
        """Tell readers in other processes that the journal at `path` has a new entry, if the store was given a way to."""
        if self._announce is not None:
            self._announce(self.url.partition("?")[0], path)

    def get(self, key: str) -> bytes:
        """Get the bytes of an object. Raises: NotFound."""
        data = self.find(key)
        if data is None:
            raise NotFound(f"{key} is not in {self.url}")
        return data

    def find(self, key: str) -> bytes | None:
        """Find the bytes of an object, or None if absent."""
        name = self._name(key)
        try:
            with self._request("get", key):
                data: bytes = self._client.get_object(Bucket=self._bucket, Key=name)["Body"].read()
                return data
        except NotFound:
            return None

    def find_range(self, key: str, start: int, size_bytes: int) -> bytes | None:
        """Find `size_bytes` of an object from byte `start` on, fewer where it ends before, or None if absent."""
        name, part = self._name(key), f"bytes={start}-{start + size_bytes - 1}"
        if size_bytes < 1:
            return b"" if self.find_modified_at(key) else None
        try:
            with self._request("get", key):
                answer = self._client.get_object(Bucket=self._bucket, Key=name, Range=part)
                data: bytes = answer["Body"].read()
                return data
        except NotFound:
            return None
        except RegistryError as error:
            if "InvalidRange" in str(error):  # it ends before `start`
                return b""
            raise

    def find_aged(self, key: str) -> Aged | None:
        """Find the bytes of an object and their age by the server's clock, to a second, or None if absent."""
        name = self._name(key)
        try:
            with self._request("get", key):
                answer = self._client.get_object(Bucket=self._bucket, Key=name)
                written: datetime = answer["LastModified"]
                return Aged(answer["Body"].read(), max(0.0, (_date_of(answer) - written).total_seconds()))
        except NotFound:
            return None

    def create(self, key: str, data: bytes) -> None:
        """Store `data` if the key is free; of any number of callers one wins.

        A retry inside boto3 can meet its own success: AlreadyExists then means "someone, maybe you".
        Raises: AlreadyExists.
        """
        name = self._name(key)
        with self._request("put", key):
            self._retry_conflicts(
                lambda: self._client.put_object(
                    Bucket=self._bucket, Key=name, Body=data, IfNoneMatch="*", **self._encryption
                )
            )

    def put(self, key: str, data: bytes) -> None:
        """Store `data`, replacing an object of that key."""
        name = self._name(key)
        with self._request("put", key):
            self._client.put_object(Bucket=self._bucket, Key=name, Body=data, **self._encryption)

    def find_modified_at(self, key: str) -> datetime | None:
        """Find when an object was last written, by the server's clock (UTC), or None if absent."""
        name = self._name(key)
        try:
            with self._request("head", key):
                at: datetime = self._client.head_object(Bucket=self._bucket, Key=name)["LastModified"]
                return at.astimezone(UTC)
        except NotFound:
            return None

    def delete(self, key: str) -> None:
        """Remove the object if it exists."""
        name = self._name(key)
        with self._request("delete", key):
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Iterate over keys that start with `prefix` and come after `after`, in order of code points."""
        return (info.key for info in self._scan(prefix, after))

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over objects as `list` does, with their sizes and times, at the cost of `list`."""
        return self._scan(prefix, "")

    def now(self) -> datetime:
        """Time by the server's clock, to the second."""
        with self._request("list", "now"):
            answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        return _date_of(answer)

    def _scan(self, prefix: str, after: str) -> Iterator[ObjectInfo]:
        cut = len(self._prefix)
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if after:
            request["StartAfter"] = self._prefix + after
        while True:
            with self._request("list", prefix):
                page = self._client.list_objects_v2(**request)
            for item in page.get("Contents", ()):
                yield ObjectInfo(item["Key"][cut:], item["Size"], item["LastModified"].astimezone(UTC))
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def upload(self, key: str, source: Path | Stream, *, on_progress: Progress | None = None) -> None:
        """Store the file or the bytes of `source`; above 32 MiB in parallel parts, each checked by a CRC.

        on_progress: called with the bytes moved since the call before; negative when a part is sent again.
        """
        name = self._name(key)
        size_bytes = source.stat().st_size if isinstance(source, Path) else source.size_bytes
        part_bytes = max(_PART_BYTES, -(-size_bytes // _MAX_PARTS))
        in_parts = size_bytes >= part_bytes  # then one request more begins it, and one ends it
        requests = 2 + -(-size_bytes // part_bytes) if in_parts else 1
        parts = TransferConfig(
            multipart_threshold=part_bytes, multipart_chunksize=part_bytes, max_concurrency=8
        )
        parts.max_in_memory_upload_chunks = _STREAMED_PARTS
        options = {"Config": parts, "Callback": on_progress, "ExtraArgs": self._encryption or None}
        with self._request("put", key, requests):
            if isinstance(source, Path):
                self._client.upload_file(str(source), self._bucket, name, **options)
            else:
                self._client.upload_fileobj(source, self._bucket, name, **options)

    def download(self, key: str, path: Path, *, on_progress: Progress | None = None) -> None:
        """Write the object to `path`, which appears whole or not at all. Raises: NotFound."""
        name = self._name(key)
        partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}")
        try:
            with self._request("get", key):
                body = self._client.get_object(Bucket=self._bucket, Key=name)["Body"]
                with partial.open("xb") as sink:
                    for chunk in body.iter_chunks(1 << 20):
                        sink.write(chunk)
                        if on_progress:
                            on_progress(len(chunk))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def table_location(self, name: str) -> tuple[str, dict[str, str]]:
        """URI and storage options with which `deltalake` opens the table `name`.

        The options hold credentials that expire, at least ten minutes from now if they can be renewed: call again instead
        of keeping them. Raises: Forbidden, Unavailable.
        """
        session, client = self._session()[1:]
        options = {"AWS_REGION": client.meta.region_name or "us-east-1"}
        endpoint = str(client.meta.endpoint_url)
        if ".amazonaws.com" not in endpoint:
            options["AWS_ENDPOINT_URL"] = endpoint
        if endpoint.startswith("http://"):
            options["AWS_ALLOW_HTTP"] = "true"
        options |= {"AWS_SERVER_SIDE_ENCRYPTION": self._sse} if self._sse else {}
        options |= {"AWS_SSE_KMS_KEY_ID": self._kms_key} if self._kms_key else {}
        with self._errors(name):
            credentials = session.get_credentials()
            frozen = credentials and credentials.get_frozen_credentials()  # renewed where it is time
        if frozen:
            options |= {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key}
            options |= {"AWS_SESSION_TOKEN": frozen.token} if frozen.token else {}
        return f"s3://{self._bucket}/{self._name(f'tables/{name}.delta')}", options

    @property
    def _client(self) -> Any:
        """The process's own boto3 client, which threads may share and a fork may not."""
        return self._session()[2]

    def _session(self) -> _Opened:
        """Open the process's session, which keeps and renews the credentials, and its client."""
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                session = new_session()
                client = session.client(
                    "s3",
                    endpoint_url=self._endpoint or None,
                    region_name=self._region or session.region_name or "us-east-1",
                    config=_CONFIG,
                )
                self._opened = (os.getpid(), session, client)
            return self._opened

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _retry_conflicts(self, write: Callable[[], Any], attempts: int = 8) -> None:
        """Repeat a conditional write while S3 answers 409, which says that another one is still in progress."""
        for attempt in range(attempts):
            try:
                write()
            except ClientError as error:
                if error.response["Error"]["Code"] != "ConditionalRequestConflict" or attempt == attempts - 1:
                    raise
                time.sleep(CHANCE.uniform(0.0, 0.05 * 2**attempt))
            else:
                return

    def _request(self, operation: Operation, key: str, requests: int = 1) -> AbstractContextManager[None]:
        """Count and time one request, and translate its errors."""
        return observed(operation, key, self._errors(key), requests=requests)

    def _errors(self, key: str) -> AbstractContextManager[None]:
        return s3_errors(key, bucket=self._bucket, url=self.url)


def _date_of(answer: Any) -> datetime:
    """Time of an answer by the server. Raises: Unavailable if it does not tell."""
    text = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if text is None:
        raise Unavailable("the S3 server sends no Date header, by which leases are timed; use one that does")
    return parsedate_to_datetime(text).astimezone(UTC)


def _rebuild(
    bucket: str,
    prefix: str,
    settings: dict[str, str],
    audit_keys: AuditKeys,
    announce: Announce | None,
) -> S3Store:
    return S3Store(bucket, prefix, audit_keys=audit_keys, announce=announce, **settings)


class _Descriptions(Loader):  # type: ignore[misc]  # botocore has no annotations
    """Descriptions of AWS's interfaces, which sessions share: to find and read them takes most of a session's 0.1 s."""

    @property
    def search_paths(self) -> list[str]:
        """List the folders; each session of boto3 adds one to this copy, for what is not used here."""
        return list(self._search_paths)


@cache
def _descriptions(data_path: str | None) -> _Descriptions:
    """Find descriptions in the folders of `AWS_DATA_PATH` too."""
    folders = (data_path or "").split(os.pathsep)
    return _Descriptions([os.path.expanduser(os.path.expandvars(folder)) for folder in folders if folder])  # noqa: PTH111 - as botocore does


def new_session() -> Any:
    """Make a session, which has credentials of its own."""
    core = botocore.session.Session()
    core.register_component("data_loader", _descriptions(core.get_config_variable("data_path")))
    return boto3.session.Session(botocore_session=core)


@contextmanager
def s3_errors(key: str, *, bucket: str, url: str) -> Iterator[None]:
    """Translate what boto3 raises for a request about `key` into the registry's errors.

    url: of the store, for messages.
    Raises: AlreadyExists, Forbidden, InvalidInput, NotFound, RegistryError, Unavailable.
    """
    try:
        yield
    except ClientError as error:
        raise _translated(key, error, bucket=bucket, url=url) from error
    except S3UploadFailedError as error:
        cause = error.__context__
        if isinstance(cause, ClientError):
            raise _translated(key, cause, bucket=bucket, url=url) from error
        raise Unavailable(f"{key}: upload to {url} failed: {error}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise Forbidden(
            f"{key}: no credentials for {url}; set AWS_ACCESS_KEY_ID and its secret or AWS_PROFILE, or give the "
            "node a role"
        ) from error
    except BotoCoreError as error:
        raise Unavailable(f"{key}: {url} did not answer: {error}") from error


def _translated(key: str, error: ClientError, *, bucket: str, url: str) -> RegistryError:
    code = str(error.response["Error"].get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return InvalidInput(f"{key}: bucket {bucket!r} does not exist; create it first")
    if code in {"NoSuchKey", "404", "NotFound"}:
        return NotFound(f"{key} is not in {url}")
    if code in {"PreconditionFailed", "412"}:
        return AlreadyExists(f"{key} is already in {url}")
    if code == "ConditionalRequestConflict" or status >= _HTTP_SERVER_ERROR or code == "SlowDown":
        return Unavailable(f"{key}: {url} answered {code}: {error}")
    if code in {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "ExpiredToken"}:
        return Forbidden(f"{key}: {url} refused the credentials ({code}); check the bucket's policy")
    return RegistryError(f"{key}: {url} answered {code}: {error}")
