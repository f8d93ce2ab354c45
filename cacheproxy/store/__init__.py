"""Documents behind the EntryStore port: record codec, memory, SQLite."""
