# Made from clients/python/src/trunkline/_async/__init__.py by tools/unasync.py: change that one.
"""The blocking client, from which `trunkline._sync` is made (`python -m tools.unasync`)."""
