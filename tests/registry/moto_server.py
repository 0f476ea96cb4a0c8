"""Moto's S3 server for tests, with one lock around writes, which makes its conditions atomic."""

import sys
import threading
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Locked:
    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] in {"PUT", "POST", "DELETE"}:
            with self._lock:
                return list(self._app(environ, start_response))
        return self._app(environ, start_response)


if __name__ == "__main__":
    server = make_server(
        "127.0.0.1", 0, Locked(DomainDispatcherApplication(create_backend_app)), threaded=True
    )
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
