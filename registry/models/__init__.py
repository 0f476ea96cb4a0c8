"""Models: versions, their files and lineage, approvals, aliases, traffic, and the rules for each."""
