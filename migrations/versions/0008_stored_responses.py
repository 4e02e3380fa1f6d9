"""Stored responses with status and headers, not only with a body."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The previous version of the API runs during the upgrade. It writes and reads task_id and
    # revision.
    op.add_column("idempotency_keys", sa.Column("status", sa.SmallInteger()))
    op.add_column("idempotency_keys", sa.Column("headers", sa.JSON()))
    op.alter_column("idempotency_keys", "task_id", nullable=True)
    op.alter_column("idempotency_keys", "revision", nullable=True)


def downgrade() -> None:
    # Rows of this version have no task_id. A repeated request with such a key counts as a new one.
    op.execute("ALTER TABLE idempotency_keys NO FORCE ROW LEVEL SECURITY")
    op.execute("DELETE FROM idempotency_keys WHERE task_id IS NULL OR revision IS NULL")
    op.execute("ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY")
    op.alter_column("idempotency_keys", "task_id", nullable=False)
    op.alter_column("idempotency_keys", "revision", nullable=False)
    op.drop_column("idempotency_keys", "headers")
    op.drop_column("idempotency_keys", "status")
