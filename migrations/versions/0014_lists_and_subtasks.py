"""Add lists, subtasks, the order of items, and quotas."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# The order keys of items, which sort by code point: digits, upper-case and lower-case letters. A key
# never ends in 0, so that there is a key between any two.
BASE_62 = """
    CREATE FUNCTION base_62(number bigint, digits int) RETURNS text
    LANGUAGE plpgsql IMMUTABLE AS $$
    DECLARE
        result text := '';
    BEGIN
        FOR place IN 1 .. digits LOOP
            result := substr(
                '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz',
                (number % 62)::int + 1, 1
            ) || result;
            number := number / 62;
        END LOOP;
        RETURN result;
    END
    $$
"""

# The key of a moment is greater than the keys of all moments before it.
ORDER_KEY_OF = """
    CREATE FUNCTION order_key_of(moment timestamptz) RETURNS text
    LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
        RETURN base_62((extract(epoch FROM moment) * 1000000)::bigint, 9) || 'V';
    END
    $$
"""

# The first characters of a key: as many as the key of a moment has.
ORDER_KEY_START = """
    CREATE FUNCTION order_key_start(order_key text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
        RETURN rpad(left(order_key, 10), 10, '0');
    END
    $$
"""

# The new key of one of several rows that get room between them. `number` is its number in their
# order; the other keys are those of the rows before and after it, or NULL. A short key stays unless
# it begins like one of these. A new key begins like the old one: a page after a cursor, which has an
# old key, continues in the same place.
ORDER_KEY_OF_ROW = """
    CREATE FUNCTION order_key_of_row(
        old_key text, number bigint, below_key text, above_key text
    ) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
    DECLARE
        start CONSTANT text := order_key_start(old_key);
    BEGIN
        IF length(old_key) <= 16
            AND start IS DISTINCT FROM order_key_start(below_key)
            AND start IS DISTINCT FROM order_key_start(above_key)
        THEN
            RETURN old_key;
        END IF;
        RETURN start || 'z' || base_62(number, 4) || 'V';
    END
    $$
"""

# A key between two keys: '' is below all keys, and NULL above all keys. The result is NULL if there
# is no such key, or if it would have more than 60 characters.
ORDER_KEY_BETWEEN = """
    CREATE FUNCTION order_key_between(lower_key text, upper_key text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE AS $$
    DECLARE
        digits CONSTANT text := '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
        has_upper boolean := upper_key IS NOT NULL;
        result text := '';
        low int;
        high int;
    BEGIN
        FOR place IN 1 .. 60 LOOP
            low := greatest(strpos(digits, nullif(substr(lower_key, place, 1), '')) - 1, 0);
            high := CASE
                WHEN NOT has_upper THEN 62
                ELSE greatest(strpos(digits, nullif(substr(upper_key, place, 1), '')) - 1, 0)
            END;
            EXIT WHEN high < low;
            IF high - low > 1 THEN
                RETURN result || substr(digits, (low + high) / 2 + 1, 1);
            END IF;
            result := result || substr(digits, low + 1, 1);
            has_upper := has_upper AND high = low;
        END LOOP;
        RETURN NULL;
    END
    $$
"""

# The position that a move writes. SQLSTATE TD001: there is no room for it.
REQUIRE_POSITION = """
    CREATE FUNCTION require_position(new_position text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        IF new_position IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'TD001', MESSAGE = 'no room between two positions';
        END IF;
        RETURN new_position;
    END
    $$
"""

# Raises the error of a broken rule, like a CHECK constraint of this name.
RAISE_RULE = """
    CREATE FUNCTION raise_rule(items text, rule text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION USING
            ERRCODE = '23514', CONSTRAINT = 'ck_' || items || '_' || rule, TABLE = items,
            MESSAGE = 'a row violates the rule ' || rule;
    END
    $$
"""

# Raises the error of an exceeded quota: like that of a rule, with the limit and how much of it is in
# use.
RAISE_QUOTA = """
    CREATE FUNCTION raise_quota(items text, rule text, quota bigint, used bigint) RETURNS void
    LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION USING
            ERRCODE = '23514', CONSTRAINT = 'ck_' || items || '_' || rule, TABLE = items,
            MESSAGE = 'a quota is exceeded',
            DETAIL = format('{"limit": %s, "used": %s}', quota, used);
    END
    $$
"""

# The position of the moved item beside the anchor (`SIDE` in todo_api/resources/order.py). `siblings`
# is a condition on live items, in which $2 is `parent`. `own` is the position of the item among the
# siblings, or NULL; it is the result if the item is in the requested place already. The result is
# NULL if there is no room.
POSITION_BESIDE = """
    CREATE FUNCTION position_beside(
        items regclass, siblings text, owner uuid, parent uuid,
        moved uuid, own text, side text, anchor uuid
    ) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE
        others CONSTANT text := format(
            'SELECT position, id FROM %s WHERE user_id = $1 AND %s AND deleted_at IS NULL'
                || ' AND id <> $3', items, siblings
        );
        anchor_key text COLLATE "C";
        below_key text COLLATE "C";
        below_id uuid;
        above_key text COLLATE "C";
        above_id uuid;
        end_key text COLLATE "C" := order_key_of(clock_timestamp());
    BEGIN
        IF anchor IS NOT NULL THEN
            EXECUTE others || ' AND id = $4' INTO anchor_key USING owner, parent, moved, anchor;
            IF anchor_key IS NULL THEN
                PERFORM raise_rule(items::text, side || '_known');
            END IF;
        END IF;
        IF side IS DISTINCT FROM 'after' OR anchor IS NOT NULL THEN
            EXECUTE others || CASE
                WHEN anchor IS NULL THEN ''
                WHEN side = 'after' THEN ' AND (position, id) <= ($4, $5)'
                ELSE ' AND (position, id) < ($4, $5)'
            END || ' ORDER BY position DESC, id DESC LIMIT 1'
            INTO below_key, below_id USING owner, parent, moved, anchor_key, anchor;
        END IF;
        IF side = 'after' OR anchor IS NOT NULL THEN
            EXECUTE others || CASE
                WHEN anchor IS NULL THEN ''
                WHEN side = 'after' THEN ' AND (position, id) > ($4, $5)'
                ELSE ' AND (position, id) >= ($4, $5)'
            END || ' ORDER BY position, id LIMIT 1'
            INTO above_key, above_id USING owner, parent, moved, anchor_key, anchor;
        END IF;
        IF own IS NOT NULL
            AND (below_key IS NULL OR (own, moved) > (below_key, below_id))
            AND (above_key IS NULL OR (own, moved) < (above_key, above_id))
        THEN
            RETURN own;
        END IF;
        IF above_key IS NULL AND (below_key IS NULL OR end_key > below_key) THEN
            RETURN end_key;
        END IF;
        RETURN order_key_between(coalesce(below_key, ''), above_key);
    END
    $$
"""

LIST_POSITION = """
    CREATE FUNCTION list_position(owner uuid, moved uuid, side text, anchor uuid) RETURNS text
    LANGUAGE plpgsql AS $$
    DECLARE
        own text;
    BEGIN
        SELECT position INTO own FROM lists WHERE user_id = owner AND id = moved;
        RETURN position_beside('lists', 'true', owner, NULL, moved, own, side, anchor);
    END
    $$
"""

# The siblings of a task without a parent are the other tasks of its list that have no parent.
TASK_POSITION = """
    CREATE FUNCTION task_position(
        owner uuid, moved uuid, parent uuid, list uuid, side text, anchor uuid
    ) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE
        own text;
    BEGIN
        SELECT position INTO own FROM tasks
        WHERE user_id = owner AND id = moved AND parent_id IS NOT DISTINCT FROM parent
            AND (parent IS NOT NULL OR place = list);
        IF parent IS NULL THEN
            RETURN position_beside(
                'tasks', 'place = $2 AND parent_id IS NULL', owner, list, moved, own, side, anchor
            );
        END IF;
        RETURN position_beside(
            'tasks', 'parent_id = $2', owner, parent, moved, own, side, anchor
        );
    END
    $$
"""

# Checks the list and the parent of a task, behind the lock on the owner's row: a volatile function
# sees what other transactions have committed. If a task is restored and its parent or list is in the
# trash or purged, the column becomes NULL; any other change is refused then. The list ffffffff-...
# means the list of the parent: all tasks of a tree are in the same list.
# A task that went to the trash with its parent comes back with it. Its place was right, and is not
# checked again, because that would read all siblings of each of its siblings.
PLACE_TASK = """
    CREATE FUNCTION place_task() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        is_restored CONSTANT boolean := NEW.deleted_at IS NULL AND OLD.deleted_at IS NOT NULL;
        takes_list CONSTANT boolean := NEW.list_id = 'ffffffff-ffff-ffff-ffff-ffffffffffff';
        above record;
        list record;
        above_id uuid := NEW.parent_id;
        levels int := 1;
        levels_below int := 0;
        broken_rule text;
        children bigint;
    BEGIN
        PERFORM FROM users WHERE id = NEW.user_id FOR NO KEY UPDATE;
        IF takes_list THEN
            NEW.list_id := OLD.list_id;
        END IF;
        IF is_restored AND (
            SELECT deleted_with = OLD.deleted_with
            FROM tasks WHERE user_id = NEW.user_id AND id = NEW.parent_id
        ) THEN
            RETURN NEW;
        END IF;
        WHILE above_id IS NOT NULL AND broken_rule IS NULL LOOP
            SELECT parent_id, list_id, deleted_at INTO above
            FROM tasks WHERE user_id = NEW.user_id AND id = above_id;
            broken_rule := CASE
                WHEN above_id = NEW.id THEN 'parent_id_not_below'
                WHEN NOT FOUND THEN 'parent_id_known'
                WHEN above.deleted_at IS NOT NULL THEN 'parent_id_known'
                WHEN levels = 5 THEN 'parent_id_levels'
            END;
            levels := levels + 1;
            above_id := above.parent_id;
        END LOOP;
        IF NEW.parent_id IS NOT NULL AND broken_rule IS NULL
            AND (is_restored OR NEW.parent_id IS DISTINCT FROM OLD.parent_id)
        THEN
            IF TG_OP = 'UPDATE' THEN
                WITH RECURSIVE below (id, level) AS (
                    SELECT NEW.id, 0
                    UNION ALL
                    SELECT tasks.id, level + 1 FROM tasks JOIN below ON tasks.parent_id = below.id
                    WHERE user_id = NEW.user_id AND level < 5 AND (
                        deleted_at IS NULL OR is_restored AND deleted_with = OLD.deleted_with
                    )
                )
                SELECT max(level) INTO levels_below FROM below;
            END IF;
            SELECT count(*) INTO children FROM tasks
            WHERE user_id = NEW.user_id AND parent_id = NEW.parent_id AND deleted_at IS NULL
                AND id <> NEW.id;
            broken_rule := CASE
                WHEN levels + levels_below > 5 THEN 'parent_id_levels'
                WHEN children >= 500 THEN 'children'
            END;
        END IF;
        IF broken_rule IS NOT NULL THEN
            IF broken_rule = 'children' AND NOT is_restored THEN
                PERFORM raise_quota('tasks', broken_rule, 500, children);
            ELSIF NOT is_restored THEN
                PERFORM raise_rule('tasks', broken_rule);
            END IF;
            NEW.parent_id := NULL;
        END IF;
        IF NEW.parent_id IS NOT NULL THEN
            IF takes_list OR is_restored THEN
                NEW.list_id := above.list_id;
            ELSIF NEW.list_id IS DISTINCT FROM above.list_id THEN
                PERFORM raise_rule('tasks', 'list_id_of_parent');
            END IF;
        END IF;
        IF NEW.list_id IS NOT NULL THEN
            SELECT archived, deleted_at INTO list
            FROM lists WHERE user_id = NEW.user_id AND id = NEW.list_id;
            IF NOT FOUND OR list.deleted_at IS NOT NULL THEN
                IF NOT is_restored THEN
                    PERFORM raise_rule('tasks', 'list_id_known');
                END IF;
                NEW.list_id := NULL;
            ELSIF list.archived AND NOT is_restored AND (
                NEW.list_id IS DISTINCT FROM OLD.list_id
                OR NEW.parent_id IS DISTINCT FROM OLD.parent_id
            ) THEN
                PERFORM raise_rule('tasks', 'list_archived');
            END IF;
        END IF;
        RETURN NEW;
    END
    $$
"""

USAGE_COLUMNS = ("tasks", "trashed_tasks", "lists", "trashed_lists", "bytes")

# Returns the revision of a change: the microsecond of its moment, or the owner's latest revision plus
# 1 if that is greater. All rows that a transaction changes share one revision: the first of them
# takes it, which locks the owner's row.
TAKE_REVISION = """
    CREATE FUNCTION take_revision(owner uuid) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        taken CONSTANT text := current_setting('todo.revision', true);
        latest bigint;
    BEGIN
        IF taken <> '' AND split_part(taken, ' ', 1) = owner::text THEN
            RETURN split_part(taken, ' ', 2);
        END IF;
        LOOP
            SELECT revision INTO latest FROM users WHERE id = owner FOR NO KEY UPDATE;
            EXIT WHEN FOUND;
            INSERT INTO users (id) VALUES (owner) ON CONFLICT (id) DO NOTHING;
        END LOOP;
        RETURN greatest(
            latest + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
        );
    END
    $$
"""

# Adds to the numbers on the owner's row. The first row that a transaction changes writes its
# revision, too, and leaves it in a setting that ends with the transaction. Later rows of this
# revision are summed up, and their sum is written after the statement, with NULL for the revision.
# The limits are settings of the transaction; without them, as in psql, there are none. A request
# that makes a number smaller is never refused.
# A new owner has missed all purges before its first change: the sync tokens of a user who was
# erased are older than that.
CHANGE_USAGE = """
    CREATE FUNCTION change_usage(
        items text, owner uuid, new_revision bigint,
        more_live bigint, more_trashed bigint, more_bytes bigint
    ) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        taken CONSTANT text := owner || ' ' || new_revision;
        max_tasks CONSTANT bigint := nullif(current_setting('todo.max_tasks', true), '');
        max_bytes CONSTANT bigint := nullif(current_setting('todo.max_bytes', true), '');
        max_live CONSTANT bigint := CASE
            WHEN items = 'tasks' THEN max_tasks WHEN max_tasks IS NOT NULL THEN 500
        END;
        usage record;
        quota text;
    BEGIN
        IF current_setting('todo.revision', true) = taken THEN
            PERFORM add_to_sum(items, owner, more_live, more_trashed, more_bytes);
            RETURN;
        END IF;
        UPDATE users SET
            revision = greatest(revision, new_revision),
            purged_revision = CASE revision WHEN 0 THEN new_revision - 1 ELSE purged_revision END,
            tasks = tasks + CASE items WHEN 'tasks' THEN more_live ELSE 0 END,
            trashed_tasks = trashed_tasks + CASE items WHEN 'tasks' THEN more_trashed ELSE 0 END,
            lists = lists + CASE items WHEN 'lists' THEN more_live ELSE 0 END,
            trashed_lists = trashed_lists + CASE items WHEN 'lists' THEN more_trashed ELSE 0 END,
            bytes = bytes + more_bytes
        WHERE id = owner
        RETURNING bytes,
            CASE items WHEN 'tasks' THEN tasks ELSE lists END AS live,
            CASE items WHEN 'tasks' THEN tasks + trashed_tasks ELSE lists + trashed_lists END AS rows
        INTO usage;
        quota := CASE
            WHEN more_live > 0 AND usage.live > max_live THEN 'quota'
            WHEN more_live + more_trashed > 0 AND usage.rows > 2 * max_live THEN 'quota_with_trash'
            WHEN more_bytes > 0 AND usage.bytes > max_bytes THEN 'quota_bytes'
        END;
        IF quota = 'quota' THEN
            PERFORM raise_quota(items, quota, max_live, usage.live - more_live);
        ELSIF quota = 'quota_with_trash' THEN
            PERFORM raise_quota(
                items, quota, 2 * max_live, usage.rows - more_live - more_trashed
            );
        ELSIF quota = 'quota_bytes' THEN
            PERFORM raise_quota(items, quota, max_bytes, usage.bytes - more_bytes);
        END IF;
        IF taken IS NOT NULL THEN
            PERFORM set_config('todo.revision', taken, true);
        END IF;
    END
    $$
"""

# The sum is of one table and one owner.
ADD_TO_SUM = """
    CREATE FUNCTION add_to_sum(
        items text, owner uuid, more_live bigint, more_trashed bigint, more_bytes bigint
    ) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        sum CONSTANT text[] := string_to_array(current_setting('todo.usage', true), ' ');
    BEGIN
        IF sum[1] = items AND sum[2] = owner::text THEN
            more_live := more_live + sum[3]::bigint;
            more_trashed := more_trashed + sum[4]::bigint;
            more_bytes := more_bytes + sum[5]::bigint;
        ELSIF sum[1] <> '' THEN
            PERFORM write_sum();
        END IF;
        PERFORM set_config(
            'todo.usage', concat_ws(' ', items, owner, more_live, more_trashed, more_bytes), true
        );
    END
    $$
"""

WRITE_SUM = """
    CREATE FUNCTION write_sum() RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        sum CONSTANT text[] := string_to_array(current_setting('todo.usage'), ' ');
    BEGIN
        PERFORM change_usage(
            sum[1], sum[2]::uuid, NULL, sum[3]::bigint, sum[4]::bigint, sum[5]::bigint
        );
        PERFORM set_config('todo.usage', '', true);
    END
    $$
"""

# After each statement that has left a sum.
WRITE_USAGE = """
    CREATE FUNCTION write_usage() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM write_sum();
        RETURN NULL;
    END
    $$
"""

# After each statement that deletes rows for good.
COUNT_DELETED_ROWS = """
    CREATE FUNCTION count_deleted_rows() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM change_usage(
            TG_TABLE_NAME, user_id, NULL, -count(*) FILTER (WHERE deleted_at IS NULL),
            -count(*) FILTER (WHERE deleted_at IS NOT NULL),
            -coalesce(sum(octet_length(json)), 0)::bigint
        ) FROM old_rows GROUP BY user_id;
        RETURN NULL;
    END
    $$
"""

# Counts all rows of an owner. The caller holds the lock on the owner's row.
COUNT_ALL_ROWS = """
    CREATE FUNCTION count_all_rows(owner uuid) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE users SET (tasks, trashed_tasks, lists, trashed_lists, bytes) = (
            SELECT
                count(*) FILTER (WHERE is_task AND deleted_at IS NULL),
                count(*) FILTER (WHERE is_task AND deleted_at IS NOT NULL),
                count(*) FILTER (WHERE NOT is_task AND deleted_at IS NULL),
                count(*) FILTER (WHERE NOT is_task AND deleted_at IS NOT NULL),
                coalesce(sum(octet_length(json)), 0)
            FROM (
                SELECT true AS is_task, deleted_at, json FROM tasks WHERE user_id = owner
                UNION ALL
                SELECT false, deleted_at, json FROM lists WHERE user_id = owner
            ) AS owned
        )
        WHERE id = owner;
    END
    $$
"""

# The function of all triggers before this migration, as in 0009.
TAKE_REVISION_OF_ROW = """
    CREATE OR REPLACE FUNCTION take_revision() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        taken text := current_setting('todo.revision', true);
        is_new boolean := false;
    BEGIN
        IF taken <> '' AND split_part(taken, ' ', 1) = NEW.user_id::text THEN
            NEW.revision := split_part(taken, ' ', 2)::bigint;
        ELSE
            LOOP
                UPDATE users SET revision = greatest(
                    revision + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
                )
                WHERE id = NEW.user_id RETURNING revision INTO NEW.revision;
                EXIT WHEN FOUND;
                INSERT INTO users (id) VALUES (NEW.user_id) ON CONFLICT (id) DO NOTHING;
                is_new := FOUND;
            END LOOP;
            IF is_new THEN
                UPDATE users SET purged_revision = revision - 1 WHERE id = NEW.user_id;
            END IF;
            PERFORM set_config('todo.revision', NEW.user_id || ' ' || NEW.revision, true);
        END IF;
        IF current_setting('todo.renewal', true) = 'on' THEN
            RETURN NEW;
        END IF;
        NEW.updated_at := clock_timestamp();
        IF TG_OP = 'INSERT' THEN
            NEW.created_at := NEW.updated_at;
        END IF;
        NEW.attempt := nullif(current_setting('todo.attempt', true), '')::uuid;
        RETURN NEW;
    END
    $$
"""

# Before write_row, in the order of the triggers' names.
PLACE_TRIGGERS = (
    """
    CREATE TRIGGER tree_on_insert BEFORE INSERT ON tasks
    FOR EACH ROW WHEN (NEW.parent_id IS NOT NULL OR NEW.list_id IS NOT NULL)
    EXECUTE FUNCTION place_task()
    """,
    """
    CREATE TRIGGER tree_on_update BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (NEW.deleted_at IS NULL AND (
        OLD.deleted_at IS NOT NULL
        OR OLD.parent_id IS DISTINCT FROM NEW.parent_id
        OR OLD.list_id IS DISTINCT FROM NEW.list_id
    ))
    EXECUTE FUNCTION place_task()
    """,
)
# An update that changes nothing takes no revision.
WRITE_ROW_ON_UPDATE = """
    CREATE TRIGGER write_row_on_update BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION write_tasks_row()
"""
USAGE_TRIGGERS = (
    """
    CREATE TRIGGER write_usage AFTER INSERT OR UPDATE ON {table}
    FOR EACH STATEMENT WHEN (current_setting('todo.usage', true) <> '')
    EXECUTE FUNCTION write_usage()
    """,
    """
    CREATE TRIGGER count_deleted_rows AFTER DELETE ON {table} REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_deleted_rows()
    """,
)
# As in 0002 and 0012.
PREVIOUS_TRIGGERS = (
    """
    CREATE TRIGGER take_revision_on_insert BEFORE INSERT ON tasks
    FOR EACH ROW EXECUTE FUNCTION take_revision()
    """,
    """
    CREATE TRIGGER take_revision_on_update BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION take_revision()
    """,
    """
    CREATE TRIGGER write_row_on_update BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (OLD.revision IS DISTINCT FROM NEW.revision)
    EXECUTE FUNCTION write_tasks_row()
    """,
)
FUNCTIONS = (
    BASE_62,
    ORDER_KEY_OF,
    ORDER_KEY_START,
    ORDER_KEY_OF_ROW,
    ORDER_KEY_BETWEEN,
    REQUIRE_POSITION,
    RAISE_RULE,
    RAISE_QUOTA,
    TAKE_REVISION,
    CHANGE_USAGE,
    ADD_TO_SUM,
    WRITE_SUM,
    WRITE_USAGE,
    COUNT_DELETED_ROWS,
    COUNT_ALL_ROWS,
    POSITION_BESIDE,
    LIST_POSITION,
    TASK_POSITION,
    PLACE_TASK,
)


def upgrade() -> None:
    for name in USAGE_COLUMNS:
        op.add_column(
            "users", sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
        )
    # PostgreSQL parses each CHECK constraint anew for every statement, and purged_revision_known
    # implies this one.
    op.drop_constraint(op.f("ck_users_revision_not_negative"), "users", type_="check")
    for function in FUNCTIONS:
        op.execute(function)
    op.create_table(
        "lists",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("color", sa.Text(), nullable=True),
        sa.Column("archived", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("position", sa.Text(collation="C"), server_default="", nullable=False),
        sa.Column(
            "metadata", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempt", sa.Uuid(), nullable=True),
        sa.Column("deleted_with", sa.BigInteger(), nullable=True),
        sa.Column("json", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_lists_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "id", name=op.f("pk_lists")),
    )
    op.create_index(
        op.f("ix_lists_user_id_created_at_id"),
        "lists",
        ["user_id", "created_at", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        op.f("ix_lists_user_id_deleted_at"),
        "lists",
        ["user_id", "deleted_at"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_lists_user_id_position_id"),
        "lists",
        ["user_id", "position", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        op.f("ix_lists_user_id_revision_id"), "lists", ["user_id", "revision", "id"], unique=False
    )
    op.add_column("tasks", sa.Column("list_id", sa.Uuid(), nullable=True))
    op.add_column("tasks", sa.Column("parent_id", sa.Uuid(), nullable=True))
    op.add_column(
        "tasks", sa.Column("position", sa.Text(collation="C"), server_default="", nullable=False)
    )
    op.add_column(
        "tasks",
        sa.Column(
            "place",
            sa.Uuid(),
            server_default="00000000-0000-0000-0000-000000000000",
            nullable=False,
        ),
    )
    op.add_column("tasks", sa.Column("deleted_with", sa.BigInteger(), nullable=True))
    op.create_index(
        op.f("ix_tasks_user_id_parent_id"),
        "tasks",
        ["user_id", "parent_id"],
        unique=False,
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_tasks_user_id_place_position_id"),
        "tasks",
        ["user_id", "place", "position", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.execute(r"""
    CREATE OR REPLACE FUNCTION write_lists_row() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        broken_rule text;
    BEGIN
        NEW.revision := take_revision(NEW.user_id);
        IF current_setting('todo.renewal', true) IS DISTINCT FROM 'on' THEN
            NEW.updated_at := clock_timestamp();
            IF TG_OP = 'INSERT' THEN
                NEW.created_at := NEW.updated_at;
            END IF;
            NEW.attempt := nullif(current_setting('todo.attempt', true), '')::uuid;
        END IF;
        IF NEW.deleted_at IS NOT NULL AND OLD.deleted_at IS NULL THEN
            NEW.deleted_with := NEW.revision;
        END IF;
        NEW.position := CASE WHEN NEW.position = '' THEN order_key_of(NEW.created_at) ELSE NEW.position END;
        broken_rule := CASE
            WHEN NOT (char_length(NEW.name) BETWEEN 1 AND 120) THEN 'ck_lists_name_length'
            WHEN NOT (NEW.name = btrim(NEW.name, U&'\0009\000A\000B\000C\000D\001C\001D\001E\001F\0020\0085\00A0\1680\2000\2001\2002\2003\2004\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000')) THEN 'ck_lists_name_stripped'
            WHEN NOT (NEW.color ~ '^#[0-9a-f]{6}$') THEN 'ck_lists_color_format'
            WHEN NOT (jsonb_array_length(jsonb_path_query_array(NEW.metadata, '$.*')) <= 20) THEN 'ck_lists_metadata_keys'
            WHEN NOT (NEW.id NOT IN ('00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff')) THEN 'ck_lists_id_free'
        END;
        IF broken_rule IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = '23514', CONSTRAINT = broken_rule, TABLE = TG_TABLE_NAME,
                MESSAGE = 'a row violates the rule ' || broken_rule;
        END IF;
        NEW.json := '{"id":' || to_json(NEW.id)
            || ',"user_id":' || to_json(NEW.user_id)
            || ',"name":' || to_json(NEW.name)
            || ',"color":' || coalesce(to_json(NEW.color)::text, 'null')
            || ',"archived":' || to_json(NEW.archived)
            || ',"position":' || to_json(NEW.position)
            || ',"metadata":' || to_json(NEW.metadata)
            || ',"created_at":' || to_json(to_char(timezone('UTC', NEW.created_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"updated_at":' || to_json(to_char(timezone('UTC', NEW.updated_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"revision":' || to_json(NEW.revision)
            || '}';
        PERFORM change_usage(
            'lists', NEW.user_id, NEW.revision,
            (NEW.deleted_at IS NULL)::int - (TG_OP = 'UPDATE' AND OLD.deleted_at IS NULL)::int,
            (NEW.deleted_at IS NOT NULL)::int - (OLD.deleted_at IS NOT NULL)::int,
            octet_length(NEW.json) - coalesce(octet_length(OLD.json), 0)
        );
        RETURN NEW;
    END
    $$
    """)
    op.execute(r"""
    CREATE OR REPLACE FUNCTION lists_json(owner uuid, item_id uuid) RETURNS text
    LANGUAGE plpgsql STABLE AS $$
    BEGIN
        RETURN (
            SELECT '{"id":' || to_json(item.id)
            || ',"user_id":' || to_json(item.user_id)
            || ',"name":' || to_json(item.name)
            || ',"color":' || coalesce(to_json(item.color)::text, 'null')
            || ',"archived":' || to_json(item.archived)
            || ',"position":' || to_json(item.position)
            || ',"metadata":' || to_json(item.metadata)
            || ',"created_at":' || to_json(to_char(timezone('UTC', item.created_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"updated_at":' || to_json(to_char(timezone('UTC', item.updated_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"revision":' || to_json(item.revision)
            || '}'
            FROM lists AS item WHERE item.user_id = owner AND item.id = item_id
        );
    END
    $$
    """)
    op.execute(
        "CREATE TRIGGER write_row_on_insert BEFORE INSERT ON lists FOR EACH ROW EXECUTE FUNCTION write_lists_row()"
    )
    op.execute(
        "CREATE TRIGGER write_row_on_update BEFORE UPDATE ON lists FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION write_lists_row()"
    )
    op.execute(
        "GRANT SELECT, INSERT (user_id, id, name, color, archived, metadata), UPDATE (name, color, archived, metadata, deleted_at), DELETE ON lists TO todo_app"
    )
    op.execute(
        "GRANT SELECT (user_id, id, revision, deleted_at), UPDATE (attempt), DELETE ON lists TO todo_maintenance"
    )
    op.execute("ALTER TABLE lists ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE lists FORCE ROW LEVEL SECURITY")
    op.execute(
        "CREATE POLICY owner ON lists USING (user_id = nullif(current_setting('todo.user_id', true), '')::uuid) WITH CHECK (user_id = nullif(current_setting('todo.user_id', true), '')::uuid)"
    )
    op.execute(
        "CREATE POLICY trash ON lists AS RESTRICTIVE FOR DELETE TO todo_app USING (deleted_at IS NOT NULL)"
    )
    op.execute(
        "CREATE POLICY maintenance ON lists TO todo_maintenance USING (deleted_at < clock_timestamp() - interval '30 days')"
    )
    op.execute(
        "GRANT INSERT (list_id, parent_id), UPDATE (list_id, parent_id) ON tasks TO todo_app"
    )
    op.execute(r"""
    CREATE OR REPLACE FUNCTION write_tasks_row() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        broken_rule text;
    BEGIN
        NEW.revision := take_revision(NEW.user_id);
        IF current_setting('todo.renewal', true) IS DISTINCT FROM 'on' THEN
            NEW.updated_at := clock_timestamp();
            IF TG_OP = 'INSERT' THEN
                NEW.created_at := NEW.updated_at;
            END IF;
            NEW.attempt := nullif(current_setting('todo.attempt', true), '')::uuid;
        END IF;
        IF NEW.deleted_at IS NOT NULL AND OLD.deleted_at IS NULL THEN
            NEW.deleted_with := NEW.revision;
        END IF;
        NEW.completed_at := CASE WHEN NEW.completed THEN coalesce(NEW.completed_at, CASE WHEN OLD.completed THEN OLD.updated_at END, NEW.updated_at) END;
        NEW.due_sort := coalesce(NEW.due_date + coalesce(NEW.due_time, '23:59:59.999999'), '9999-12-31 00:00:00');
        NEW.place := coalesce(NEW.list_id, '00000000-0000-0000-0000-000000000000');
        NEW.position := CASE WHEN NEW.position = '' THEN order_key_of(NEW.created_at) ELSE NEW.position END;
        broken_rule := CASE
            WHEN NOT (char_length(NEW.title) BETWEEN 1 AND 255) THEN 'ck_tasks_title_length'
            WHEN NOT (NEW.title = btrim(NEW.title, U&'\0009\000A\000B\000C\000D\001C\001D\001E\001F\0020\0085\00A0\1680\2000\2001\2002\2003\2004\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000')) THEN 'ck_tasks_title_stripped'
            WHEN NOT (char_length(NEW.description) <= 10000) THEN 'ck_tasks_description_length'
            WHEN NOT (NEW.priority IN ('none', 'low', 'medium', 'high')) THEN 'ck_tasks_priority_known'
            WHEN NOT (cardinality(NEW.labels) <= 20) THEN 'ck_tasks_labels_count'
            WHEN NOT (NEW.due_date BETWEEN '1970-01-01' AND '9999-12-30') THEN 'ck_tasks_due_date_range'
            WHEN NOT (NEW.start_date BETWEEN '1970-01-01' AND '9999-12-30') THEN 'ck_tasks_start_date_range'
            WHEN NOT (jsonb_array_length(jsonb_path_query_array(NEW.metadata, '$.*')) <= 20) THEN 'ck_tasks_metadata_keys'
            WHEN NOT (NEW.due_time IS NULL OR NEW.due_date IS NOT NULL) THEN 'ck_tasks_due_time_needs_due_date'
            WHEN NOT (NEW.time_zone IS NULL OR NEW.due_time IS NOT NULL) THEN 'ck_tasks_time_zone_needs_due_time'
            WHEN NOT (NEW.start_date <= NEW.due_date) THEN 'ck_tasks_start_date_not_after_due_date'
        END;
        IF broken_rule IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = '23514', CONSTRAINT = broken_rule, TABLE = TG_TABLE_NAME,
                MESSAGE = 'a row violates the rule ' || broken_rule;
        END IF;
        NEW.json := '{"id":' || to_json(NEW.id)
            || ',"user_id":' || to_json(NEW.user_id)
            || ',"title":' || to_json(NEW.title)
            || ',"description":' || coalesce(to_json(NEW.description)::text, 'null')
            || ',"completed":' || to_json(NEW.completed)
            || ',"completed_at":' || coalesce(to_json(to_char(timezone('UTC', NEW.completed_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"priority":' || to_json(NEW.priority)
            || ',"labels":' || to_json(NEW.labels)
            || ',"due_date":' || coalesce(to_json(NEW.due_date)::text, 'null')
            || ',"due_time":' || coalesce(to_json(NEW.due_time)::text, 'null')
            || ',"time_zone":' || coalesce(to_json(NEW.time_zone)::text, 'null')
            || ',"due_at":' || coalesce(to_json(to_char(timezone('UTC', NEW.due_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"start_date":' || coalesce(to_json(NEW.start_date)::text, 'null')
            || ',"list_id":' || coalesce(to_json(NEW.list_id)::text, 'null')
            || ',"parent_id":' || coalesce(to_json(NEW.parent_id)::text, 'null')
            || ',"position":' || to_json(NEW.position)
            || ',"metadata":' || to_json(NEW.metadata)
            || ',"created_at":' || to_json(to_char(timezone('UTC', NEW.created_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"updated_at":' || to_json(to_char(timezone('UTC', NEW.updated_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"revision":' || to_json(NEW.revision)
            || '}';
        PERFORM change_usage(
            'tasks', NEW.user_id, NEW.revision,
            (NEW.deleted_at IS NULL)::int - (TG_OP = 'UPDATE' AND OLD.deleted_at IS NULL)::int,
            (NEW.deleted_at IS NOT NULL)::int - (OLD.deleted_at IS NOT NULL)::int,
            octet_length(NEW.json) - coalesce(octet_length(OLD.json), 0)
        );
        RETURN NEW;
    END
    $$
    """)
    op.execute(r"""
    CREATE OR REPLACE FUNCTION tasks_json(owner uuid, item_id uuid) RETURNS text
    LANGUAGE plpgsql STABLE AS $$
    BEGIN
        RETURN (
            SELECT '{"id":' || to_json(item.id)
            || ',"user_id":' || to_json(item.user_id)
            || ',"title":' || to_json(item.title)
            || ',"description":' || coalesce(to_json(item.description)::text, 'null')
            || ',"completed":' || to_json(item.completed)
            || ',"completed_at":' || coalesce(to_json(to_char(timezone('UTC', item.completed_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"priority":' || to_json(item.priority)
            || ',"labels":' || to_json(item.labels)
            || ',"due_date":' || coalesce(to_json(item.due_date)::text, 'null')
            || ',"due_time":' || coalesce(to_json(item.due_time)::text, 'null')
            || ',"time_zone":' || coalesce(to_json(item.time_zone)::text, 'null')
            || ',"due_at":' || coalesce(to_json(to_char(timezone('UTC', item.due_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"start_date":' || coalesce(to_json(item.start_date)::text, 'null')
            || ',"list_id":' || coalesce(to_json(item.list_id)::text, 'null')
            || ',"parent_id":' || coalesce(to_json(item.parent_id)::text, 'null')
            || ',"position":' || to_json(item.position)
            || ',"metadata":' || to_json(item.metadata)
            || ',"created_at":' || to_json(to_char(timezone('UTC', item.created_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"updated_at":' || to_json(to_char(timezone('UTC', item.updated_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"revision":' || to_json(item.revision)
            || '}'
            FROM tasks AS item WHERE item.user_id = owner AND item.id = item_id
        );
    END
    $$
    """)
    # A move writes the position.
    op.execute("GRANT UPDATE (position) ON tasks, lists TO todo_app")
    # One trigger takes the revision and writes the row.
    for name in ("take_revision_on_insert", "take_revision_on_update", "write_row_on_update"):
        op.execute(f"DROP TRIGGER {name} ON tasks")
    op.execute("DROP FUNCTION take_revision()")
    op.execute(WRITE_ROW_ON_UPDATE)
    for trigger in PLACE_TRIGGERS:
        op.execute(trigger)
    for table in ("tasks", "lists"):
        for trigger in USAGE_TRIGGERS:
            op.execute(trigger.format(table=table))
    # The purge counts, too.
    op.execute(f"GRANT UPDATE ({', '.join(USAGE_COLUMNS)}) ON users TO todo_maintenance")
    # The rows that exist are counted by the renewal, owner by owner.
    op.execute(
        "UPDATE database_state SET renewal_position = '00000000-0000-0000-0000-000000000000'"
    )


def downgrade() -> None:
    for name in ("tree_on_update", "tree_on_insert", "write_usage", "count_deleted_rows"):
        op.execute(f"DROP TRIGGER {name} ON tasks")
    op.drop_index(
        op.f("ix_tasks_user_id_place_position_id"),
        table_name="tasks",
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(
        op.f("ix_tasks_user_id_parent_id"),
        table_name="tasks",
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.drop_column("tasks", "deleted_with")
    op.drop_column("tasks", "place")
    op.drop_column("tasks", "position")
    op.drop_column("tasks", "parent_id")
    op.drop_column("tasks", "list_id")
    op.drop_index(op.f("ix_lists_user_id_revision_id"), table_name="lists")
    op.drop_index(
        op.f("ix_lists_user_id_position_id"),
        table_name="lists",
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(
        op.f("ix_lists_user_id_deleted_at"),
        table_name="lists",
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.drop_index(
        op.f("ix_lists_user_id_created_at_id"),
        table_name="lists",
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_table("lists")
    op.execute("DROP FUNCTION write_lists_row()")
    op.execute("DROP FUNCTION lists_json(uuid, uuid)")
    op.execute(r"""CREATE OR REPLACE FUNCTION public.write_tasks_row()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
    DECLARE
        broken_rule text;
    BEGIN
        NEW.completed_at := CASE WHEN NEW.completed THEN coalesce(NEW.completed_at, CASE WHEN OLD.completed THEN OLD.updated_at END, NEW.updated_at) END;
        NEW.due_sort := coalesce(NEW.due_date + coalesce(NEW.due_time, '23:59:59.999999'), '9999-12-31 00:00:00');
        broken_rule := CASE
            WHEN NOT (NEW.revision > 0) THEN 'ck_tasks_revision_positive'
            WHEN NOT (char_length(NEW.title) BETWEEN 1 AND 255) THEN 'ck_tasks_title_length'
            WHEN NOT (NEW.title = btrim(NEW.title, U&'\0009\000A\000B\000C\000D\001C\001D\001E\001F\0020\0085\00A0\1680\2000\2001\2002\2003\2004\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000')) THEN 'ck_tasks_title_stripped'
            WHEN NOT (char_length(NEW.description) <= 10000) THEN 'ck_tasks_description_length'
            WHEN NOT (NEW.priority IN ('none', 'low', 'medium', 'high')) THEN 'ck_tasks_priority_known'
            WHEN NOT (cardinality(NEW.labels) <= 20) THEN 'ck_tasks_labels_count'
            WHEN NOT (NEW.due_date BETWEEN '1970-01-01' AND '9999-12-30') THEN 'ck_tasks_due_date_range'
            WHEN NOT (NEW.start_date BETWEEN '1970-01-01' AND '9999-12-30') THEN 'ck_tasks_start_date_range'
            WHEN NOT (jsonb_array_length(jsonb_path_query_array(NEW.metadata, '$.*')) <= 20) THEN 'ck_tasks_metadata_keys'
            WHEN NOT (NEW.due_time IS NULL OR NEW.due_date IS NOT NULL) THEN 'ck_tasks_due_time_needs_due_date'
            WHEN NOT (NEW.time_zone IS NULL OR NEW.due_time IS NOT NULL) THEN 'ck_tasks_time_zone_needs_due_time'
            WHEN NOT (NEW.start_date <= NEW.due_date) THEN 'ck_tasks_start_date_not_after_due_date'
        END;
        IF broken_rule IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = '23514', CONSTRAINT = broken_rule, TABLE = TG_TABLE_NAME,
                MESSAGE = 'a row violates the rule ' || broken_rule;
        END IF;
        NEW.json := '{"id":' || to_json(NEW.id)
            || ',"user_id":' || to_json(NEW.user_id)
            || ',"title":' || to_json(NEW.title)
            || ',"description":' || coalesce(to_json(NEW.description)::text, 'null')
            || ',"completed":' || to_json(NEW.completed)
            || ',"completed_at":' || coalesce(to_json(to_char(timezone('UTC', NEW.completed_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"priority":' || to_json(NEW.priority)
            || ',"labels":' || to_json(NEW.labels)
            || ',"due_date":' || coalesce(to_json(NEW.due_date)::text, 'null')
            || ',"due_time":' || coalesce(to_json(NEW.due_time)::text, 'null')
            || ',"time_zone":' || coalesce(to_json(NEW.time_zone)::text, 'null')
            || ',"due_at":' || coalesce(to_json(to_char(timezone('UTC', NEW.due_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"start_date":' || coalesce(to_json(NEW.start_date)::text, 'null')
            || ',"metadata":' || to_json(NEW.metadata)
            || ',"created_at":' || to_json(to_char(timezone('UTC', NEW.created_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"updated_at":' || to_json(to_char(timezone('UTC', NEW.updated_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"revision":' || to_json(NEW.revision)
            || '}';
        RETURN NEW;
    END
    $function$
    """)
    op.execute(r"""CREATE OR REPLACE FUNCTION tasks_json(owner uuid, item_id uuid) RETURNS text
    LANGUAGE plpgsql STABLE AS $$
    BEGIN
        RETURN (
            SELECT '{"id":' || to_json(item.id)
            || ',"user_id":' || to_json(item.user_id)
            || ',"title":' || to_json(item.title)
            || ',"description":' || coalesce(to_json(item.description)::text, 'null')
            || ',"completed":' || to_json(item.completed)
            || ',"completed_at":' || coalesce(to_json(to_char(timezone('UTC', item.completed_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"priority":' || to_json(item.priority)
            || ',"labels":' || to_json(item.labels)
            || ',"due_date":' || coalesce(to_json(item.due_date)::text, 'null')
            || ',"due_time":' || coalesce(to_json(item.due_time)::text, 'null')
            || ',"time_zone":' || coalesce(to_json(item.time_zone)::text, 'null')
            || ',"due_at":' || coalesce(to_json(to_char(timezone('UTC', item.due_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"start_date":' || coalesce(to_json(item.start_date)::text, 'null')
            || ',"metadata":' || to_json(item.metadata)
            || ',"created_at":' || to_json(to_char(timezone('UTC', item.created_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"updated_at":' || to_json(to_char(timezone('UTC', item.updated_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"revision":' || to_json(item.revision)
            || '}'
            FROM tasks AS item WHERE item.user_id = owner AND item.id = item_id
        );
    END
    $$
    """)
    for function in reversed(FUNCTIONS):
        name = function.split("(")[0].split()[-1]
        op.execute(f"DROP FUNCTION {name}")
    op.execute(TAKE_REVISION_OF_ROW)
    op.execute("DROP TRIGGER write_row_on_update ON tasks")
    for trigger in PREVIOUS_TRIGGERS:
        op.execute(trigger)
    op.execute(f"REVOKE UPDATE ({', '.join(USAGE_COLUMNS)}) ON users FROM todo_maintenance")
    for name in USAGE_COLUMNS:
        op.drop_column("users", name)
    op.create_check_constraint(op.f("ck_users_revision_not_negative"), "users", "revision >= 0")
    op.execute(
        "UPDATE database_state SET renewal_position = '00000000-0000-0000-0000-000000000000'"
    )
