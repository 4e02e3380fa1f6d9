"""The exception of the embedded PostgreSQL."""


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be used; the message says why, and what to do."""
