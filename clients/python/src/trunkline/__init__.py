"""The Trunkline client. The generated stubs are in `trunkline.api`."""

__version__ = "0.1.0"
