"""The stored responses to requests with an Idempotency-Key."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.clock_timestamp(),
            nullable=False,
        ),
        sa.CheckConstraint(
            "char_length(key) BETWEEN 1 AND 255", name=op.f("ck_idempotency_keys_key_length")
        ),
        sa.CheckConstraint(
            "octet_length(fingerprint) = 32", name=op.f("ck_idempotency_keys_fingerprint_length")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_idempotency_keys_user_id_users"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.execute("GRANT SELECT, INSERT ON idempotency_keys TO todo_app")
    op.execute(
        "GRANT SELECT (user_id, key, created_at), DELETE ON idempotency_keys TO todo_maintenance"
    )
    op.execute("ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY")
    op.execute("""
        CREATE POLICY owner ON idempotency_keys
        USING (user_id = nullif(current_setting('todo.user_id', true), '')::uuid)
        WITH CHECK (user_id = nullif(current_setting('todo.user_id', true), '')::uuid)
    """)
    op.execute("""
        CREATE POLICY maintenance ON idempotency_keys TO todo_maintenance
        USING (created_at < clock_timestamp() - interval '24 hours')
    """)


def downgrade() -> None:
    op.drop_table("idempotency_keys")
