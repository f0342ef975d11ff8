"""`python -m opensana.cli`: the same as the installed `opensana` command."""

from opensana.cli.app import program

program()
