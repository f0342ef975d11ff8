"""Work in threads and on clusters, and its progress."""
