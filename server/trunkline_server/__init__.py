"""The Trunkline server: a multi-tenant gRPC backend for call centres."""

__version__ = "0.1.0"
