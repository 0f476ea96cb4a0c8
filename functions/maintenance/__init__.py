"""Maintenance functions for a schedule: compact tables, expire old rows, delete unused files."""
