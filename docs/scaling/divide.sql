-- Divide the four tables into 16 partitions each, by a hash of the owner's id: psql -1 -f divide.sql
--
-- Stop all servers, run `make migrate`, and run this script as the role that owns the tables. The script
-- locks the tables and copies them. It reads constraints, indexes, triggers, policies and grants from the
-- catalog and creates them again with the same names, so that later migrations work. It needs PostgreSQL
-- 15 or later. It is one transaction: if it fails, nothing has changed.

DO $$
DECLARE
    parts CONSTANT int := 16;
    owners CONSTANT jsonb := '[["users", "id"], ["lists", "user_id"], ["tasks", "user_id"],
                              ["idempotency_keys", "user_id"]]';
    divided jsonb;
    name text;
    again text[] := '{}';
    command text;
BEGIN
    CREATE SCHEMA undivided;
    FOR divided IN SELECT jsonb_array_elements(owners) LOOP
        name := divided->>0;
        again := again || array(
            -- Primary keys first, because foreign keys refer to them. CREATE TABLE below copies checks.
            SELECT format('ALTER TABLE %I ADD CONSTRAINT %I %s',
                          name, conname, pg_get_constraintdef(oid))
            FROM pg_constraint WHERE conrelid = name::regclass AND contype IN ('p', 'f')
            ORDER BY contype DESC
        ) || array(
            SELECT pg_get_indexdef(indexrelid) FROM pg_index
            WHERE indrelid = name::regclass
              AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
        ) || array(
            SELECT pg_get_triggerdef(oid) FROM pg_trigger
            WHERE tgrelid = name::regclass AND NOT tgisinternal
        ) || array(
            SELECT format('CREATE POLICY %I ON %I AS %s FOR %s TO %s', policyname, name,
                          permissive, cmd, array_to_string(roles, ', '))
                || coalesce(' USING (' || qual || ')', '')
                || coalesce(' WITH CHECK (' || with_check || ')', '')
            FROM pg_policies WHERE schemaname = current_schema() AND tablename = name
        ) || array(
            SELECT format('GRANT %s ON %I TO %I', privilege_type, name, grantee::regrole::text)
            FROM pg_class, aclexplode(relacl)
            WHERE oid = name::regclass AND grantee <> relowner AND grantee <> 0
        ) || array(
            SELECT format('GRANT %s (%I) ON %I TO %I',
                          privilege_type, attname, name, grantee::regrole::text)
            FROM pg_attribute, aclexplode(attacl) WHERE attrelid = name::regclass AND grantee <> 0
        ) || array[
            format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name),
            format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name)
        ];
    END LOOP;

    FOR divided IN SELECT jsonb_array_elements(owners) LOOP
        name := divided->>0;
        -- Otherwise row-level security would hide every row from the role that copies the tables.
        EXECUTE format('ALTER TABLE %I NO FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I SET SCHEMA undivided', name);
        EXECUTE format('CREATE TABLE %I (LIKE undivided.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS) '
                       'PARTITION BY HASH (%I)', name, name, divided->>1);
        FOR part IN 0 .. parts - 1 LOOP
            EXECUTE format('CREATE TABLE %I PARTITION OF %I '
                           'FOR VALUES WITH (MODULUS %s, REMAINDER %s)',
                           name || '_' || part, name, parts, part);
        END LOOP;
        EXECUTE format('INSERT INTO %I SELECT * FROM undivided.%I', name, name);
    END LOOP;

    DROP SCHEMA undivided CASCADE;
    FOREACH command IN ARRAY again LOOP
        EXECUTE command;
    END LOOP;
END
$$;
