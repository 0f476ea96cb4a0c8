"""Sending of a load: open and closed loops, the processes that send, and what they count."""
