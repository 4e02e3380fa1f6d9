"""Stored responses of any kind: status and headers beside the body."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The version before this goes on beside it: it writes task_id and revision, and reads them.
    op.add_column("idempotency_keys", sa.Column("status", sa.SmallInteger()))
    op.add_column("idempotency_keys", sa.Column("headers", sa.JSON()))
    op.alter_column("idempotency_keys", "task_id", nullable=True)
    op.alter_column("idempotency_keys", "revision", nullable=True)


def downgrade() -> None:
    # Rows of this version have no task_id: their requests, if repeated, are new ones.
    op.execute("ALTER TABLE idempotency_keys NO FORCE ROW LEVEL SECURITY")
    op.execute("DELETE FROM idempotency_keys WHERE task_id IS NULL OR revision IS NULL")
    op.execute("ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY")
    op.alter_column("idempotency_keys", "task_id", nullable=False)
    op.alter_column("idempotency_keys", "revision", nullable=False)
    op.drop_column("idempotency_keys", "headers")
    op.drop_column("idempotency_keys", "status")
