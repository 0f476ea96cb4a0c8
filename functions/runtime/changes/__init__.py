"""Announcements of changed journals by Redis: writers publish them, readers wait for them instead of polling the store.

An announcement that is lost delays a reader to its next slow poll, and loses nothing: readers always read the journal.
"""
