"""The offline store: feature tables, the point-in-time join, and training sets from one machine or many."""
