"""Model versions with their files, lineage, approvals, aliases and traffic, and the rules for each."""
