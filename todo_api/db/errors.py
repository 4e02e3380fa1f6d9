"""Decide whether a failed statement leads to a retry, a response with 503, or a 500.

Exceptions of this package, under psycopg's own:

    psycopg.OperationalError
        OutcomeUnknownError     the connection was lost during a write, and again during its retry
"""

from __future__ import annotations

from typing import NamedTuple

import psycopg

# Reasons to retry a statement. After CONNECTION_LOST, the result of the first run is unknown.
CONNECTION_LOST = "connection_lost"
ROLLED_BACK = "rolled_back"


class Meaning(NamedTuple):
    """The consequence of an error of a statement.

    `retry_reason` is None if the statement is not retried. `is_unavailable` tells whether the
    response is a 503 if the statement is not retried, or fails again.
    """

    retry_reason: str | None
    is_unavailable: bool


# By SQLSTATE (PostgreSQL's manual, appendix A). Any other SQLSTATE is a bug, or the violation of a
# constraint that web/errors.py maps to a problem.
SQLSTATES = {
    # These two: a write lost a race against another request. Unavailable only if its retries lose a
    # race, too.
    "23503": Meaning(ROLLED_BACK, is_unavailable=True),  # foreign_key_violation: owner was erased
    "23505": Meaning(ROLLED_BACK, is_unavailable=True),  # unique_violation: a lost race
    "25P03": Meaning(CONNECTION_LOST, is_unavailable=True),  # idle_in_transaction_session_timeout
    "25P04": Meaning(CONNECTION_LOST, is_unavailable=True),  # transaction_timeout
    "40001": Meaning(ROLLED_BACK, is_unavailable=True),  # serialization_failure
    "40P01": Meaning(ROLLED_BACK, is_unavailable=True),  # deadlock_detected
    "53300": Meaning(None, is_unavailable=True),  # too_many_connections
    # A row was inserted beside a change of several rows, and another request has locked it.
    "55P03": Meaning(ROLLED_BACK, is_unavailable=True),  # lock_not_available
    "57014": Meaning(None, is_unavailable=True),  # query_canceled
    "57P01": Meaning(CONNECTION_LOST, is_unavailable=True),  # admin_shutdown
    "57P02": Meaning(CONNECTION_LOST, is_unavailable=True),  # crash_shutdown
    "57P03": Meaning(CONNECTION_LOST, is_unavailable=True),  # cannot_connect_now
}
# The class connection_exception. Poolers use all SQLSTATEs of this class.
CONNECTION_EXCEPTION = "08"
LOST = Meaning(CONNECTION_LOST, is_unavailable=True)
BUG = Meaning(None, is_unavailable=False)


class OutcomeUnknownError(psycopg.OperationalError):
    """The connection was lost, and the server cannot tell whether a change was made."""


def meaning(error: psycopg.Error) -> Meaning:
    """Return what the error leads to, by its SQLSTATE and never by its text."""
    state = error.sqlstate
    if state is None:
        # The connection broke, or the pool had no connection.
        return LOST if isinstance(error, psycopg.OperationalError) else BUG
    if state.startswith(CONNECTION_EXCEPTION):
        return LOST
    return SQLSTATES.get(state, BUG)
