"""Builders of the platform's Serve applications, which the config that `toque deploy` makes names by import path."""
