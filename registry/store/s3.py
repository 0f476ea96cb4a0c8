"""An object store in an S3 bucket, through boto3: `create` is PutObject with `If-None-Match: *`.

Sessions of boto3 have credentials of their own, and share the descriptions of AWS's interfaces.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
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

from toque.registry.errors import AlreadyExists, Forbidden, InvalidInput, NotFound, RegistryError, Unavailable
from toque.registry.names import check_key
from toque.registry.store.object_store import ObjectInfo, ObjectStore
from toque.registry.store.requests import observed
from toque.registry.times import CHANCE

if TYPE_CHECKING:
    from toque.registry.audit_keys import AuditKeys
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
_CONFLICTS = 8  # of conditional writes at once, before one gives up


class S3Store(ObjectStore):
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
        super().__init__(prefix, audit_keys, announce)
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
        self._lock = threading.Lock()
        self._opened: _Opened | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        opened = partial(S3Store, audit_keys=self._audit_keys, announce=self._announce, **self._settings)
        return opened, (self._bucket, self._prefix.strip("/"))

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
        return S3Store(
            self._bucket, place, audit_keys=self._audit_keys, announce=self._announce, **self._settings
        )

    def _read(self, key: str) -> bytes:
        data: bytes = self._get(key)["Body"].read()
        return data

    def _read_range(self, key: str, start: int, size_bytes: int) -> bytes:
        try:
            data: bytes = self._get(key, Range=f"bytes={start}-{start + size_bytes - 1}")["Body"].read()
        except ClientError as error:
            if error.response["Error"].get("Code") == "InvalidRange":  # it ends before `start`
                return b""
            raise
        return data

    def _read_dated(self, key: str) -> tuple[bytes, datetime, datetime]:
        answer = self._get(key)
        return answer["Body"].read(), answer["LastModified"], _date_of(answer)

    def _chunks(self, key: str) -> Iterator[bytes]:
        yield from self._get(key)["Body"].iter_chunks(1 << 20)

    def _modified_at(self, key: str) -> datetime:
        at: datetime = self._client.head_object(Bucket=self._bucket, Key=self._name(key))["LastModified"]
        return at.astimezone(UTC)

    def _create(self, key: str, data: bytes) -> None:
        """Create an object, again while S3 answers 409, which says that another conditional write is still in progress."""
        for attempt in range(_CONFLICTS):
            try:
                self._put(key, data, IfNoneMatch="*")
            except ClientError as error:
                if (
                    error.response["Error"]["Code"] != "ConditionalRequestConflict"
                    or attempt == _CONFLICTS - 1
                ):
                    raise
                time.sleep(CHANCE.uniform(0.0, 0.05 * 2**attempt))
            else:
                return

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        self._client.put_object(
            Bucket=self._bucket, Key=self._name(key), Body=data, **condition, **self._encryption
        )

    def _delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=self._name(key))

    def _get(self, key: str, **part: str) -> Any:
        return self._client.get_object(Bucket=self._bucket, Key=self._name(key), **part)

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Iterate over keys that start with `prefix` and come after `after`, in order of code points."""
        return (info.key for info in self._scan(prefix, after))

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over objects as `list` does, with their sizes and times, at the cost of `list`."""
        return self._scan(prefix, "")

    def now(self) -> datetime:
        """Time by the server's clock, to the second."""
        with self._listing("now"):
            answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        return _date_of(answer)

    def _scan(self, prefix: str, after: str) -> Iterator[ObjectInfo]:
        cut = len(self._prefix)
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if after:
            request["StartAfter"] = self._prefix + after
        while True:
            with self._listing(prefix):
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
                self._client.upload_file(str(source), self._bucket, self._name(key), **options)
            else:
                self._client.upload_fileobj(source, self._bucket, self._name(key), **options)

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

    def _listing(self, prefix: str) -> AbstractContextManager[None]:
        """Count and time one page of a listing, and translate its errors."""
        return observed("list", prefix, self._errors(prefix))

    def _errors(self, key: str) -> AbstractContextManager[None]:
        return s3_errors(key, bucket=self._bucket, url=self.url)


def _date_of(answer: Any) -> datetime:
    """Time of an answer by the server. Raises: Unavailable if it does not tell."""
    text = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if text is None:
        raise Unavailable("the S3 server sends no Date header, by which leases are timed; use one that does")
    return parsedate_to_datetime(text).astimezone(UTC)


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
