"""Rows of a training that memory does not hold: from a file of this machine, or from a sharded set of samples."""
