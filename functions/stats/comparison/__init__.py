"""Comparisons of arms that stay valid at every look, and the plans that size them."""
