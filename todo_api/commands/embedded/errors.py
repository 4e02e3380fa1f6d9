"""The exception of the embedded PostgreSQL."""


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be used. The message says why, and what to do."""
