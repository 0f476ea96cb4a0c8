"""Moto's S3 server for tests, with one lock around writes, which makes its conditions atomic.

--ignore-conditions: as servers do that do not know If-None-Match. --key-in=FILE: the only access key that is accepted.
--late-by=FILE, --ahead-by=FILE: seconds by which answers are late, and by which the server's clock is ahead.
--refuse-writes=FILE: its text is the status with which every write is answered, such as `503 Slow Down`; empty: none is.
"""

import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


def _file_of(option: str) -> Path | None:
    return next((Path(each.partition("=")[2]) for each in sys.argv if each.startswith(f"{option}=")), None)


KEY_FILE, LATE_FILE, AHEAD_FILE, REFUSAL_FILE = map(
    _file_of, ("--key-in", "--late-by", "--ahead-by", "--refuse-writes")
)


class Dated(WSGIRequestHandler):
    def date_time_string(self, timestamp: float | None = None) -> str:
        ahead_s = float(AHEAD_FILE.read_text()) if AHEAD_FILE else 0.0
        return formatdate((time.time() if timestamp is None else timestamp) + ahead_s, usegmt=True)


class Locked:
    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if LATE_FILE:
            time.sleep(float(LATE_FILE.read_text()))  # the lateness that a test asked for
        if KEY_FILE and f"Credential={KEY_FILE.read_text()}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [
                b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
            ]
        if environ["REQUEST_METHOD"] in {"PUT", "POST", "DELETE"}:
            if refusal := REFUSAL_FILE.read_text() if REFUSAL_FILE else "":
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(refusal, [("Content-Type", "application/xml")])
                return [b"<Error><Code>Refused</Code><Message>Writes are refused.</Message></Error>"]
            if "--ignore-conditions" in sys.argv:
                environ.pop("HTTP_IF_NONE_MATCH", None)
            with self._lock:
                return list(self._app(environ, start_response))
        return self._app(environ, start_response)


if __name__ == "__main__":
    app = Locked(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Dated)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
