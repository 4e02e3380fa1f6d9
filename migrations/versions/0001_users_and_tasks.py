"""Users and tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The characters that Python's str.strip() removes.
WHITE_SPACE = (
    r"U&'\0009\000A\000B\000C\000D\001C\001D\001E\001F\0020\0085\00A0\1680\2000\2001\2002\2003"
    r"\2004\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000'"
)


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    now = sa.text("clock_timestamp()")
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("created_at", moment, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.CheckConstraint("revision >= 0", name=op.f("ck_users_revision_not_negative")),
    )
    op.create_table(
        "tasks",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("completed", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", moment, nullable=False, server_default=now),
        sa.Column("updated_at", moment, nullable=False, server_default=now),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("deleted_at", moment),
        sa.PrimaryKeyConstraint("user_id", "id", name="pk_tasks"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_tasks_user_id_users", ondelete="CASCADE"
        ),
        sa.CheckConstraint(
            "char_length(title) BETWEEN 1 AND 255", name=op.f("ck_tasks_title_length")
        ),
        sa.CheckConstraint(
            f"title = btrim(title, {WHITE_SPACE})", name=op.f("ck_tasks_title_stripped")
        ),
        sa.CheckConstraint(
            "char_length(description) <= 10000", name=op.f("ck_tasks_description_length")
        ),
        sa.CheckConstraint("revision > 0", name=op.f("ck_tasks_revision_positive")),
    )
    live = sa.text("deleted_at IS NULL")
    op.create_index(
        "ix_tasks_user_id_created_at_id",
        "tasks",
        ["user_id", "created_at", "id"],
        postgresql_where=live,
    )
    op.create_index(
        "ix_tasks_user_id_completed_created_at_id",
        "tasks",
        ["user_id", "completed", "created_at", "id"],
        postgresql_where=live,
    )


def downgrade() -> None:
    op.drop_table("tasks")
    op.drop_table("users")
