"""Erasure of a person or thing from all that the platform stores, with a certificate of what was removed where."""
