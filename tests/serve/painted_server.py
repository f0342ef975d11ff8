"""A process to be stopped: `python -m tests.serve.painted_server FOLDER PORT SECONDS GRACE`."""

import sys
from pathlib import Path

from opensana.serve import run
from opensana.serve.keys import NO_KEYS
from opensana.serve.service import Service
from opensana.serve.store import Store
from tests.serve.gradient import Gradient

if __name__ == "__main__":
    folder, port, seconds, grace = sys.argv[1:]
    listener = run.bind("127.0.0.1", int(port))
    service = Service(Gradient(float(seconds)), Store(Path(folder)), batch=2)
    run.serve(service, listener, keys=NO_KEYS, grace=float(grace))
