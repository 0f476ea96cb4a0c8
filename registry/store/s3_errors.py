"""Errors of an S3 server as the registry's: which answer of the server means what to a caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from toque.registry.errors import AlreadyExists, Forbidden, InvalidInput, NotFound, RegistryError, Unavailable

_HTTP_SERVER_ERROR = 500


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
