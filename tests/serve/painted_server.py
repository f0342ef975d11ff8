"""A process to be stopped: `python -m tests.serve.painted_server FOLDER PORT SECONDS GRACE`.

With REPLICAS, RAY ADDRESS after these its replicas are on Ray.
"""

import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from opensana.serve import run
from opensana.serve.keys import NO_KEYS
from opensana.serve.ray_replicas import ray_replicas, read_scale
from opensana.serve.service import Service
from opensana.serve.store import Store
from tests.serve.gradient import Gradient

if __name__ == "__main__":
    folder, port, seconds, grace, *more = sys.argv[1:]
    listener = run.bind("127.0.0.1", int(port))
    store = Store(Path(folder))
    gradient = partial(Gradient, float(seconds))
    painters = (
        ray_replicas(more[1], read_scale(more[0]), gradient, batch=2, folder=Path(folder))
        if more
        else nullcontext(gradient())
    )
    with painters as painter:
        service = Service(painter, store, batch=2)
        run.serve(service, listener, keys=NO_KEYS, grace=float(grace))
