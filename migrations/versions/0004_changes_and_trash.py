"""Delta sync and the trash: their indexes, and the last purged revision of a user."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "users",
        sa.Column("purged_revision", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    )
    op.create_check_constraint(
        op.f("ck_users_purged_revision_known"),
        "users",
        "purged_revision BETWEEN 0 AND revision",
    )
    op.create_index("ix_tasks_user_id_revision", "tasks", ["user_id", "revision"])
    op.create_index(
        "ix_tasks_user_id_deleted_at",
        "tasks",
        ["user_id", "deleted_at"],
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_tasks_user_id_deleted_at", "tasks")
    op.drop_index("ix_tasks_user_id_revision", "tasks")
    op.drop_constraint(op.f("ck_users_purged_revision_known"), "users")
    op.drop_column("users", "purged_revision")
