"""PostgreSQL and Valkey with nothing installed: real servers, from wheels."""

from trunkline_server.local.errors import DirectoryBusy, LocalStackError
from trunkline_server.local.postgres import Postgres
from trunkline_server.local.stack import LocalStack, StackUrls
from trunkline_server.local.valkey import Valkey

__all__ = ["DirectoryBusy", "LocalStack", "LocalStackError", "Postgres", "StackUrls", "Valkey"]
