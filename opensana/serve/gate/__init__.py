"""Who may ask, and what is a request at all."""
