"""Storage engines: SQLite and PostgreSQL, and the schema that they share."""
