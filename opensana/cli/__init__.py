"""The command line: one file a command, each a frozen dataclass whose fields are its flags.

Importing this package loads neither torch nor any model code: `--help` answers at once, and a
wrong flag or a bad size is refused before anything heavy starts.
"""

from opensana.cli.app import main, program

__all__ = ["main", "program"]
