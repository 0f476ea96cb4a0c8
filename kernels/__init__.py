"""The numeric core: hashing and counting at the speed of the machine.

Pure functions from arrays to arrays. This room knows nothing of models, features, stores or Ray; every
other room may call it.
"""

from kernels.hashing import hash_strings

__all__ = ["hash_strings"]
