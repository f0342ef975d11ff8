"""Work by several threads or machines, and how far it is."""
