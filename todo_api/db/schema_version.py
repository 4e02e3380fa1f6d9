"""The migration that this version of the code needs; `make migration` writes it."""

# /health answers 503 while the database has an older one.
SCHEMA_VERSION = "0010"
