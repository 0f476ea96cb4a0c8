"""Load on a running platform: locust users, open and closed loops, and objectives to hold."""
