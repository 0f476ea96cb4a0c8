"""Sessions of boto3, each with credentials of its own, that share the descriptions of AWS's interfaces."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import boto3
import botocore.session
from botocore.loaders import Loader


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
    return _Descriptions([os.path.expanduser(os.path.expandvars(each)) for each in folders if each])  # noqa: PTH111 - as botocore does


def new_session() -> Any:
    """Make a session, which has credentials of its own."""
    core = botocore.session.Session()
    core.register_component("data_loader", _descriptions(core.get_config_variable("data_path")))
    return boto3.session.Session(botocore_session=core)
