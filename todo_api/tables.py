"""The schema. Migrations are generated from it, statements are built on it."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    column,
    false,
    func,
    table,
    text,
)

# The migration that this code needs. /health asks the database for it or a later one.
SCHEMA_VERSION = "0007"

TITLE_LENGTH = 255
DESCRIPTION_LENGTH = 10_000
KEY_LENGTH = 255

# What Python's str.strip() removes, as an SQL literal: the database holds what the schema promises.
STRIPPED = "U&'{}'".format(
    "".join(f"\\{code:04X}" for code in range(0x10000) if chr(code).isspace())
)

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
    # The number of the user's latest change; the trigger on tasks moves it.
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    Column(
        "created_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.clock_timestamp(),
    ),
    # The latest of the changes that a purge has removed: who knows less has missed some.
    Column("purged_revision", BigInteger, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("id"),
    CheckConstraint("revision >= 0", name="revision_not_negative"),
    CheckConstraint("purged_revision BETWEEN 0 AND revision", name="purged_revision_known"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("user_id", Uuid, nullable=False),
    Column("id", Uuid, nullable=False),
    Column("title", Text, nullable=False),
    Column("description", Text),
    Column("completed", Boolean, nullable=False, server_default=false()),
    # The trigger sets these three, under the lock on the owner's row: a user's tasks become
    # visible in the order of created_at and of revision. A statement gives no value for them.
    Column(
        "created_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.clock_timestamp(),
    ),
    Column(
        "updated_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.clock_timestamp(),
    ),
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    Column("deleted_at", DateTime(timezone=True)),
    # What the latest change was made by: from this, an attempt whose answer was lost recognises,
    # when it is repeated, that it was made. The trigger sets it.
    Column("attempt", Uuid),
    PrimaryKeyConstraint("user_id", "id"),
    ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
    CheckConstraint(f"char_length(title) BETWEEN 1 AND {TITLE_LENGTH}", name="title_length"),
    CheckConstraint(f"title = btrim(title, {STRIPPED})", name="title_stripped"),
    CheckConstraint(f"char_length(description) <= {DESCRIPTION_LENGTH}", name="description_length"),
    CheckConstraint("revision > 0", name="revision_positive"),
)

LIVE = tasks.c.deleted_at.is_(None)
DELETED = tasks.c.deleted_at.is_not(None)

# How long deleted tasks are kept, and idempotency keys, as the policies of the role that purges
# have it.
TRASH_DAYS = 30
KEY_HOURS = 24

# A page of the list, newest first, of all tasks and of the open or the completed ones.
Index(None, tasks.c.user_id, tasks.c.created_at, tasks.c.id, postgresql_where=LIVE)
Index(
    None,
    tasks.c.user_id,
    tasks.c.completed,
    tasks.c.created_at,
    tasks.c.id,
    postgresql_where=LIVE,
)

# What a request with an Idempotency-Key was answered, to be given again when it is repeated.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", Uuid, nullable=False),
    Column("key", Text, nullable=False),
    # Of the request that had the key first: SHA-256.
    Column("fingerprint", LargeBinary, nullable=False),
    # The new task: what was answered is made of these three. JSON keeps a text as it is.
    Column("task_id", Uuid, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("body", JSON, nullable=False),
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

# What has changed, in order; and the trash.
Index(None, tasks.c.user_id, tasks.c.revision)
Index(None, tasks.c.user_id, tasks.c.deleted_at, postgresql_where=DELETED)

# Alembic's own table: read by /health, kept out of the metadata that migrations are compared with.
alembic_version = table("alembic_version", column("version_num"))
