"""Which files of a version can execute code when they are loaded, found by content: scripts, libraries, archives, pickles."""

from registry.models.code_files.files import executable_files

__all__ = ["executable_files"]
