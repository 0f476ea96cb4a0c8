"""Other tools on the same work, for benchmarks that compare with them."""
