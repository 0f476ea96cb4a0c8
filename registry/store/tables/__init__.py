"""Delta tables in a store: rows in snapshots that (table, version) names, their files, upkeep, and removal from their history.

Imports nothing: `naming` is for processes that read no table, and all other modules bring Arrow and Delta.
"""
