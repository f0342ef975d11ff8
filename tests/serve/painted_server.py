"""A server in a process of its own: `python -m tests.serve.painted_server FOLDER PORT OPTIONS`.

OPTIONS is JSON: step (seconds), grace, batch, and limits by their names.
"""

import json
import sys
from collections import deque
from pathlib import Path

from opensana.serve import run
from opensana.serve.gate.keys import NO_KEYS
from opensana.serve.jobs.limits import Limits
from opensana.serve.jobs.store import Store
from opensana.serve.service import Service
from tests.serve.gradient import Gradient

if __name__ == "__main__":
    folder, port, options = sys.argv[1:]
    asked = {"step": 0.0, "grace": 20.0, "batch": 8, "limits": {}} | json.loads(options)
    listener = run.bind("127.0.0.1", int(port))
    service = Service(
        # What it notes of each batch would grow for as long as it runs.
        Gradient(asked["step"], batches=deque(maxlen=0)),
        Store(Path(folder)),
        batch=asked["batch"],
        limits=Limits(**asked["limits"]),
    )
    run.serve(service, listener, keys=NO_KEYS, grace=asked["grace"])
