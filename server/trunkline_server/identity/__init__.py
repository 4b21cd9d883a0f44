"""Organisations, users, credentials, the audit log."""
