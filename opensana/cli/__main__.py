"""`python -m opensana.cli`: the same as the installed `opensana` command."""

import sys

from opensana.cli.app import main

sys.exit(main())
