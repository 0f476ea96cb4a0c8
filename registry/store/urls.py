"""Opening a store by its url: a folder or an S3 bucket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from toque.registry.audit_keys import AuditKeys
from toque.registry.errors import InvalidInput
from toque.registry.store.folder import FolderStore

if TYPE_CHECKING:
    from toque.registry.store.object_store import Announce
    from toque.registry.store.s3 import S3Store

_S3_SETTINGS = {"region", "endpoint", "sse", "kms_key"}


def open_store(
    url: str, *, audit_keys: AuditKeys | None = None, announce: Announce | None = None
) -> FolderStore | S3Store:
    """Open the store at `url`: `file:///absolute/path` or `s3://bucket/prefix?region=…&endpoint=http://…&sse=…&kms_key=…`.

    Objects and Delta tables are reached with the same settings, and with the credentials that boto3 finds: of variables, a
    profile, a web identity, a container or an instance. region, endpoint: by default as boto3 finds them too. sse, kms_key:
    how the server encrypts what is written (default: as the bucket says).
    audit_keys: authenticate the history in the store, such as `AuditKeys.of_environment(os.environ)`; None: it is
    read unverified, and a journal that others authenticate cannot be appended to.
    announce: called with the store's address and the path of each journal that is appended to through it.
    Raises: InvalidInput for any other url.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query, strict_parsing=bool(parts.query))
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return FolderStore(Path(unquote(parts.path)), audit_keys=audit_keys, announce=announce)
    if parts.scheme == "s3" and parts.netloc and set(query) <= _S3_SETTINGS:
        from toque.registry.store.s3 import S3Store  # late: boto3 is a third of this room's import

        settings = {name: values[-1] for name, values in query.items()}
        return S3Store(
            parts.netloc, unquote(parts.path).strip("/"), audit_keys=audit_keys, announce=announce, **settings
        )
    raise InvalidInput(
        f"store url {url!r}: want 'file:///absolute/path' or 's3://bucket/prefix?region=…&endpoint=…&sse=…&kms_key=…'"
    )
