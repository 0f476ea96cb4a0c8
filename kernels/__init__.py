"""The numeric core: hashing and counting at the speed of the machine.

Pure functions from arrays to arrays. This room knows nothing of models, features, stores or Ray; every
other room may call it. Importing it costs neither torch nor Triton: what needs them imports them when it is
given a tensor.
"""

from kernels.hashing import hash_strings
from kernels.histogram import histogram, quantile_edges

__all__ = ["hash_strings", "histogram", "quantile_edges"]
