"""The Trunkline server: a multi-tenant gRPC backend for call centres."""
