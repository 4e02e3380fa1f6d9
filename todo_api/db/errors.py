"""Decide by its error how a failed statement ends: run again, answered with a 503, or a bug.

Exceptions of this package, under psycopg's own:

    psycopg.OperationalError
        OutcomeUnknownError     a write whose answer was lost, and the answer to its repetition, too
"""

from __future__ import annotations

from typing import NamedTuple

import psycopg

# Reasons to run a statement again. After a lost connection, it is not known what the first run did.
CONNECTION_LOST = "connection_lost"
ROLLED_BACK = "rolled_back"


class Meaning(NamedTuple):
    """Why a statement may be run again, if at all; and whether a 503 is the answer otherwise."""

    retry: str | None
    is_unavailable: bool


# By SQLSTATE (PostgreSQL, appendix A). Any other one is a bug, or the name of a constraint.
SQLSTATES = {
    "23505": Meaning(ROLLED_BACK, is_unavailable=False),  # unique_violation: a lost race
    "25P03": Meaning(CONNECTION_LOST, is_unavailable=True),  # idle_in_transaction_session_timeout
    "25P04": Meaning(CONNECTION_LOST, is_unavailable=True),  # transaction_timeout
    "40001": Meaning(ROLLED_BACK, is_unavailable=True),  # serialization_failure
    "40P01": Meaning(ROLLED_BACK, is_unavailable=True),  # deadlock_detected
    "53300": Meaning(None, is_unavailable=True),  # too_many_connections
    "55P03": Meaning(None, is_unavailable=True),  # lock_not_available
    "57014": Meaning(None, is_unavailable=True),  # query_canceled
    "57P01": Meaning(CONNECTION_LOST, is_unavailable=True),  # admin_shutdown
    "57P02": Meaning(CONNECTION_LOST, is_unavailable=True),  # crash_shutdown
    "57P03": Meaning(CONNECTION_LOST, is_unavailable=True),  # cannot_connect_now
}
# Poolers use all of this class, connection_exception.
CONNECTION_EXCEPTION = "08"
LOST = Meaning(CONNECTION_LOST, is_unavailable=True)
BUG = Meaning(None, is_unavailable=False)


class OutcomeUnknownError(psycopg.OperationalError):
    """It cannot be told whether a change was made: the answer to it was lost."""


def meaning(error: psycopg.Error) -> Meaning:
    """Return what the error means, by its SQLSTATE and never by its text."""
    state = error.sqlstate
    if state is None:
        # The connection broke, or the pool had none to give.
        return LOST if isinstance(error, psycopg.OperationalError) else BUG
    if state.startswith(CONNECTION_EXCEPTION):
        return LOST
    return SQLSTATES.get(state, BUG)
