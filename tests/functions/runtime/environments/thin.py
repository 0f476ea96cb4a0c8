"""Virtual environment that is thin: it finds all packages in this process's own, and is copied in no time."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path


def thin_python(folder: Path) -> Path:
    """Make one in `folder`; returns its interpreter."""
    venv.create(folder, symlinks=True)
    packages = sysconfig.get_path(
        "purelib", vars={"base": str(folder), "platbase": str(folder)}, scheme="venv"
    )
    own = sysconfig.get_path("purelib")
    Path(packages, "base.pth").write_text(f"import site; site.addsitedir({own!r})\n")
    return folder / "bin" / "python"
