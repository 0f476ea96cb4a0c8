"""The journal: numbered, chained entries appended by compare-and-append, and state folded from them."""
