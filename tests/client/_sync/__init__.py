# Made from tests/client/_async/__init__.py by tools/unasync.py: change that one.
