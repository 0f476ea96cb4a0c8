"""Diagnosis of alarms: the slices, features and events that explain a loss."""
