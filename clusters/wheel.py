"""Builds the wheel that `pip install` takes: `python -m clusters.wheel FOLDER` writes it.

The rooms are folders at the top of the checkout, with names as general as `kernels`, which other distributions own too. So the wheel
has them below `toque/rooms`, where no installer can mix their files with another's. docs/decisions/0017-wheel.md says why.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("clusters", "featurestore", "functions", "kernels", "load", "ray_apps", "registry")
_TAG = "py3-none-any"
_LEFT_OUT = {"__pycache__", "kubernetes", "peers", "attacks"}
_SUFFIXES = {
    ".py",
    ".yaml",
    ".json",
    ".sh",
    ".cfg",
    ".http",
    ".html",
    ".css",
    ".js",
    ".svg",
    ".binpb",
    ".toml",
}
_TIME = (2020, 1, 1, 0, 0, 0)  # the same content is the same wheel
_EXECUTABLE, _PLAIN = 0o100755, 0o100644


def build_wheel(folder: Path, *, root: Path = ROOT) -> Path:
    """Write the wheel of the checkout at `root` to `folder`; returns its path."""
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    info = f"{name}-{version}.dist-info"
    contents = {
        **dict(_files(root)),
        f"{name}.pth": f"{name}/rooms\n".encode(),
        f"{info}/METADATA": _metadata(project).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: {name}\nRoot-Is-Purelib: true\nTag: {_TAG}\n".encode(),
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n".encode(),
    }
    contents[f"{info}/RECORD"] = _record(contents, f"{info}/RECORD")
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-{_TAG}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            entry = zipfile.ZipInfo(path, _TIME)
            entry.external_attr = (_EXECUTABLE if path.endswith(".sh") else _PLAIN) << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return wheel


def _files(root: Path) -> Iterator[tuple[str, bytes]]:
    """Files of the wheel by their paths in it: the face `toque`, and the rooms below it."""
    yield "toque/__init__.py", (root / "toque" / "__init__.py").read_bytes()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*")):
            inside = path.relative_to(root)
            if path.suffix in _SUFFIXES and path.is_file() and not _LEFT_OUT & set(inside.parts):
                yield f"toque/rooms/{inside.as_posix()}", path.read_bytes()


def _metadata(project: dict[str, Any]) -> str:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {project['name']}",
        f"Version: {project['version']}",
        f"Summary: {project['description']}",
        f"License: {project['license']}",
        f"Requires-Python: {project['requires-python']}",
        *(f"Requires-Dist: {needed}" for needed in project["dependencies"]),
    ]
    for extra, needs in project["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        for needed in needs:
            package, _, marker = needed.partition(";")
            condition = f'extra == "{extra}"' + (f" and ({marker.strip()})" if marker else "")
            lines.append(f"Requires-Dist: {package.strip()}; {condition}")
    return "\n".join(lines) + "\n"


def _record(contents: dict[str, bytes], own: str) -> bytes:
    lines = []
    for path, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}")
    return "\n".join([*lines, f"{own},,", ""]).encode()


if __name__ == "__main__":
    sys.stdout.write(f"{build_wheel(Path(sys.argv[1]))}\n")
