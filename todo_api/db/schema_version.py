"""The number of the migration that this version of the code needs."""

# `make migration` writes the number. /health is 503 while the database has an older migration.
SCHEMA_VERSION = "0014"
