"""Files on disk: atomic writes, locks, append-only files, text encodings, the user's cache."""
