"""The published model folder: tables of the paper, reading, writing, converting, describing."""
