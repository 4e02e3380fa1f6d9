"""The tables that belong to no resource: users, stored responses, and the database's state."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    column,
    func,
    table,
    text,
    true,
)

KEY_LENGTH = 255

# How long deleted rows and idempotency keys are kept. The policies of the role that purges have the
# same numbers, and a test compares them.
TRASH_DAYS = 30
KEY_HOURS = 24

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

users = Table(
    "users",
    metadata,
    Column("id", Uuid, nullable=False),
    # The number of the user's latest change, taken by the trigger of each resource: microseconds
    # since 1970, and always greater than the one before (a hybrid logical clock).
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    Column(
        "created_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.clock_timestamp(),
    ),
    # The latest change that a purge has removed: a device below it has missed a deletion.
    Column("purged_revision", BigInteger, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("id"),
    CheckConstraint("revision >= 0", name="revision_not_negative"),
    CheckConstraint("purged_revision BETWEEN 0 AND revision", name="purged_revision_known"),
)

# The response to the first request with an Idempotency-Key, for those that repeat it.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", Uuid, nullable=False),
    Column("key", Text, nullable=False),
    # SHA-256 of the first request.
    Column("fingerprint", LargeBinary, nullable=False),
    # The response. JSON, unlike JSONB, keeps a text as it is. Only the version before this one
    # writes the id.
    Column("status", SmallInteger),
    Column("headers", JSON),
    Column("body", JSON, nullable=False),
    Column("task_id", Uuid),
    Column("revision", BigInteger),
    Column(
        "created_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.clock_timestamp(),
    ),
    PrimaryKeyConstraint("user_id", "key"),
    ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
    CheckConstraint(f"char_length(key) BETWEEN 1 AND {KEY_LENGTH}", name="key_length"),
    CheckConstraint("octet_length(fingerprint) = 32", name="fingerprint_length"),
)

# What belongs to the database as a whole, in one row.
database_state = Table(
    "database_state",
    metadata,
    Column("is_current", Boolean, nullable=False, server_default=true()),
    # In every sync token. `make restored` sets another one, so that clients start a full sync.
    Column("epoch", Uuid, nullable=False, server_default=func.gen_random_uuid()),
    # The rows of owners from this id on are to be renewed: todo_api/commands/renewal.py.
    Column("renewal_position", Uuid),
    PrimaryKeyConstraint("is_current"),
    CheckConstraint("is_current", name="one_row"),
)

# Alembic's own table, read by /health. It is not in the metadata that migrations are compared with.
alembic_version = table("alembic_version", column("version_num"))
