"""A server whose replicas are on Ray.

`python -m tests.serve.painted_cluster FOLDER PORT SECONDS REPLICAS ADDRESS`; the model that a
picture names has the process that drew it.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from opensana.drawing.picture import Picture
from opensana.serve import run
from opensana.serve.gate.keys import NO_KEYS
from opensana.serve.jobs.store import Store
from opensana.serve.replicas import ray_replicas
from opensana.serve.service import Service
from tests.serve.gradient import Gradient, Sheet

BATCH = 2


class Signed(Gradient):
    def finish(self, canvases: Sequence[Sheet]) -> list[Picture]:
        return [replace(one, model=str(os.getpid())) for one in super().finish(canvases)]


if __name__ == "__main__":
    folder, port, seconds, replicas, address = sys.argv[1:]
    ray_replicas.UPSCALE_SECONDS, ray_replicas.DOWNSCALE_SECONDS = 1.0, 5.0
    listener, store = run.bind("127.0.0.1", int(port)), Store(Path(folder))
    scale = ray_replicas.read_scale(replicas)
    from tests.serve import painted_cluster  # not __main__, which replicas do not have

    opening = partial(painted_cluster.Signed, float(seconds))
    with ray_replicas.ray_replicas(
        address, scale, opening, batch=BATCH, folder=Path(folder)
    ) as painters:
        service = Service(painters, store, batch=BATCH)
        run.serve(service, listener, keys=NO_KEYS, grace=20)
