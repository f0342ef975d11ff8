"""Pictures as files, bytes and pixels: reading what is not trusted, scaling, sheets."""
