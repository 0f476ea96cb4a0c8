"""Credentials that a container gets from its endpoint and that end at any moment, with a server that accepts the newest only."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.registry import s3_servers


class ShortLived:
    """The newest key lies in a file, which the S3 server reads at each request."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.asked = 0
        self._number = 0
        self.end_credentials()

    def end_credentials(self) -> None:
        """Let all credentials that were given so far expire."""
        self._number += 1
        self.file.write_text(f"KEY{self._number}")

    def answer(self) -> bytes:
        self.asked += 1
        soon = datetime.now(UTC) + timedelta(minutes=5)  # so soon that botocore renews them at each use
        return json.dumps(
            {
                "AccessKeyId": self.file.read_text(),
                "SecretAccessKey": "secret",
                "Token": "token",
                "Expiration": soon.isoformat(),
            }
        ).encode()


@contextmanager
def short_lived(folder: Path) -> Iterator[tuple[ShortLived, str]]:
    """Credentials in the environment from an endpoint of their own; gives them and a store's url at a server."""
    keys = ShortLived(folder / "key")

    class Endpoint(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(keys.answer())

        def log_message(self, *_: object) -> None: ...

    endpoint = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch, s3_servers.moto(f"--key-in={keys.file}") as server:
        for name in (
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_PROFILE",
            "AWS_DEFAULT_REGION",
        ):
            patch.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, "/nonexistent")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{endpoint.server_port}/")
        s3_servers.create_bucket(server, "toque")
        yield keys, f"s3://toque/store?region=eu-central-1&endpoint={server}"
    endpoint.shutdown()
    endpoint.server_close()
