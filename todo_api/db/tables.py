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

IDEMPOTENCY_KEY_LENGTH = 255

# How long deleted rows and idempotency keys are kept. The policies of the role todo_maintenance
# have the same numbers, and a test compares them.
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
    # The revision of the user's latest change, from the function `take_revision` (migrations/):
    # microseconds since 1970, but always greater than the previous number (a hybrid logical clock).
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    Column(
        "created_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.clock_timestamp(),
    ),
    # The highest revision of a deleted row that was removed for good. A client whose sync token has
    # a lower revision may have missed that deletion, and needs a full sync.
    Column("purged_revision", BigInteger, nullable=False, server_default=text("0")),
    # The IANA name of the time zone in which the user's days begin and end.
    Column("time_zone", Text, nullable=False, server_default="UTC"),
    # The numbers of the user's rows, live and in the trash, and the bytes of their JSON. The
    # function `change_usage` (migrations/) counts them, and refuses what would exceed a quota.
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in ("tasks", "trashed_tasks", "lists", "trashed_lists", "bytes")
    ),
    PrimaryKeyConstraint("id"),
    # "known": the owner has reached this revision.
    CheckConstraint("purged_revision BETWEEN 0 AND revision", name="purged_revision_known"),
)

# The response to the first request with an Idempotency-Key, which repeated requests get again.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", Uuid, nullable=False),
    Column("key", Text, nullable=False),
    # The SHA-256 of the first request.
    Column("fingerprint", LargeBinary, nullable=False),
    # The response. JSON, unlike JSONB, keeps a text as it is. `task_id` is unused: the column stays
    # until no server of the previous release runs, because that release writes it.
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
    CheckConstraint(f"char_length(key) BETWEEN 1 AND {IDEMPOTENCY_KEY_LENGTH}", name="key_length"),
    CheckConstraint("octet_length(fingerprint) = 32", name="fingerprint_length"),
)

# The state of the database as a whole. `is_current` is the primary key and always true, so that the
# table can have only one row.
database_state = Table(
    "database_state",
    metadata,
    Column("is_current", Boolean, nullable=False, server_default=true()),
    # A random id, which every sync token contains. After a restore from a backup, `make restored`
    # sets a new epoch, so that clients start a full sync.
    Column("epoch", Uuid, nullable=False, server_default=func.gen_random_uuid()),
    # The renewal (todo_api/commands/renewal.py) continues with the owner who has this id or the
    # next one. NULL: no renewal is needed.
    Column("renewal_position", Uuid),
    PrimaryKeyConstraint("is_current"),
    CheckConstraint("is_current", name="one_row"),
)

# Alembic's table, which /health reads. It is not in `metadata`, which describes our own tables.
alembic_version = table("alembic_version", column("version_num"))
