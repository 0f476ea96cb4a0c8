"""The offline feature store: tables, the point-in-time join, and training sets on one machine or many."""
