"""What any part needs of the disk: whole or nothing, one process a folder, text, a cache."""
