"""A student of 1 to 4 steps (SANA-Sprint)."""
