"""The commands of `toque`, one module for each group."""
