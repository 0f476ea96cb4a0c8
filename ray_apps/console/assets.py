"""Files that pages load: style sheet, script and icon, shipped in the package and named by their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOR_EVER = "public, max-age=31536000, immutable"
_RECHECKED = "public, no-cache"


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    media_type: str
    digest: str


class Assets:
    """The files of a folder, read once. An address with the file's digest may be kept for ever; any other is rechecked."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._prefix = prefix
        self._assets = {path.name: _read(path) for path in folder.iterdir() if path.suffix in _TYPES}

    def path(self, name: str) -> str:
        """Address of a file, which changes with its content."""
        return f"{self._prefix}/{name}?v={self._assets[name].digest}"

    def respond(self, name: str, request: Request) -> Response:
        """Answer a request for a file: 404 for an unknown one, 304 for one that the browser has."""
        found = self._assets.get(name)
        if found is None:
            return Response(status_code=404)
        tag = f'"{found.digest}"'
        kept = request.query_params.get("v") == found.digest
        headers = {"ETag": tag, "Cache-Control": _FOR_EVER if kept else _RECHECKED}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.media_type, headers=headers)


def _read(path: Path) -> _Asset:
    content = path.read_bytes()
    return _Asset(content, _TYPES[path.suffix], hashlib.sha256(content).hexdigest()[:16])
