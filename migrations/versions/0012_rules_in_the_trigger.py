"""Move the rules of tasks from CHECK constraints into the trigger, and limit what requests write."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# PostgreSQL parses each CHECK constraint anew for every statement. The errors of the trigger have
# the same SQLSTATE and the same names.
CHECKS = {
    "ck_tasks_title_length": "char_length(title) BETWEEN 1 AND 255",
    "ck_tasks_title_stripped": "title = btrim(title, U&'\\0009\\000A\\000B\\000C\\000D\\001C\\001D\\001E\\001F\\0020\\0085\\00A0\\1680\\2000\\2001\\2002\\2003\\2004\\2005\\2006\\2007\\2008\\2009\\200A\\2028\\2029\\202F\\205F\\3000')",
    "ck_tasks_description_length": "char_length(description) <= 10000",
    "ck_tasks_priority_known": "priority IN ('none', 'low', 'medium', 'high')",
    "ck_tasks_revision_positive": "revision > 0",
}

# The triggers run after take_revision, in the order of their names. An update that changes nothing
# takes no revision, and runs no function.
TRIGGERS = """
    CREATE TRIGGER write_{what}_on_insert BEFORE INSERT ON tasks
    FOR EACH ROW EXECUTE FUNCTION {function}();
    CREATE TRIGGER write_{what}_on_update BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (OLD.revision IS DISTINCT FROM NEW.revision)
    EXECUTE FUNCTION {function}()
"""

# As in 0011.
WRITE_JSON = """
    CREATE OR REPLACE FUNCTION write_tasks_json() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.json := '{"id":' || to_json(NEW.id)
            || ',"user_id":' || to_json(NEW.user_id)
            || ',"title":' || to_json(NEW.title)
            || ',"description":' || coalesce(to_json(NEW.description)::text, 'null')
            || ',"completed":' || to_json(NEW.completed)
            || ',"priority":' || to_json(NEW.priority)
            || ',"created_at":' || to_json(to_char(timezone('UTC', NEW.created_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"updated_at":' || to_json(to_char(timezone('UTC', NEW.updated_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"revision":' || to_json(NEW.revision)
            || '}';
        RETURN NEW;
    END
    $$
    """

WRITE_ROW = r"""
    CREATE OR REPLACE FUNCTION write_tasks_row() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        broken_rule text;
    BEGIN
        broken_rule := CASE
            WHEN NOT (NEW.revision > 0) THEN 'ck_tasks_revision_positive'
            WHEN NOT (char_length(NEW.title) BETWEEN 1 AND 255) THEN 'ck_tasks_title_length'
            WHEN NOT (NEW.title = btrim(NEW.title, U&'\0009\000A\000B\000C\000D\001C\001D\001E\001F\0020\0085\00A0\1680\2000\2001\2002\2003\2004\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000')) THEN 'ck_tasks_title_stripped'
            WHEN NOT (char_length(NEW.description) <= 10000) THEN 'ck_tasks_description_length'
            WHEN NOT (NEW.priority IN ('none', 'low', 'medium', 'high')) THEN 'ck_tasks_priority_known'
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
            || ',"priority":' || to_json(NEW.priority)
            || ',"created_at":' || to_json(to_char(timezone('UTC', NEW.created_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"updated_at":' || to_json(to_char(timezone('UTC', NEW.updated_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"revision":' || to_json(NEW.revision)
            || '}';
        RETURN NEW;
    END
    $$
"""


def upgrade() -> None:
    op.execute("DROP TRIGGER write_json_on_update ON tasks")
    op.execute("DROP TRIGGER write_json_on_insert ON tasks")
    op.execute("DROP FUNCTION write_tasks_json()")
    op.execute(WRITE_ROW)
    op.execute(TRIGGERS.format(what="row", function="write_tasks_row"))
    for name in CHECKS:
        op.drop_constraint(op.f(name), "tasks", type_="check")
    # Requests cannot write what the triggers write, and cannot change the owner of a task.
    op.execute("REVOKE INSERT, UPDATE ON tasks FROM todo_app")
    op.execute("""
        GRANT INSERT (user_id, id, title, description, completed, priority),
            UPDATE (title, description, completed, priority, deleted_at)
        ON tasks TO todo_app
    """)


def downgrade() -> None:
    op.execute("""
        REVOKE INSERT (user_id, id, title, description, completed, priority),
            UPDATE (title, description, completed, priority, deleted_at)
        ON tasks FROM todo_app
    """)
    op.execute("GRANT INSERT, UPDATE ON tasks TO todo_app")
    for name, condition in CHECKS.items():
        op.create_check_constraint(op.f(name), "tasks", condition)
    op.execute("DROP TRIGGER write_row_on_update ON tasks")
    op.execute("DROP TRIGGER write_row_on_insert ON tasks")
    op.execute("DROP FUNCTION write_tasks_row()")
    op.execute(WRITE_JSON)
    op.execute(TRIGGERS.format(what="json", function="write_tasks_json"))
