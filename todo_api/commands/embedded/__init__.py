"""PostgreSQL with its data in a folder: for `make run` and the tests, never for production."""

from todo_api.commands.embedded.account import find_account
from todo_api.commands.embedded.cluster import Cluster, temporary_cluster
from todo_api.commands.embedded.errors import EmbeddedError

__all__ = ["Cluster", "EmbeddedError", "find_account", "temporary_cluster"]
