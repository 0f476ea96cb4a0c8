"""Which files of a version can execute code when they are loaded: all but formats of data, and data that holds something else."""

from toque.registry.models.code_files.archives import open_archive
from toque.registry.models.code_files.files import disguised_files, executable_files

__all__ = ["disguised_files", "executable_files", "open_archive"]
