"""Fast numeric functions for hashing and histograms; `toque.kernels.encoder` has the first layer of tabular networks.

Pure functions from arrays to arrays. This package knows nothing of models, features, stores or Ray; every
other package may call it. Importing it imports neither torch nor Triton: `toque.kernels.encoder` needs torch, and Triton on a GPU.
"""

from toque.kernels.hashing import hash_strings
from toque.kernels.histogram import histogram, quantile_edges

__all__ = ["hash_strings", "histogram", "quantile_edges"]
