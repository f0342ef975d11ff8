"""Replicas on Ray Serve. Placement, restarts, scaling and back-pressure are Ray's.

The app stays in the process that has the jobs, and reaches the replicas by Serve's handle. Serve's
own HTTP proxy is not started: it would send each request to any replica, but a job's events, its
key's limits and its pictures are where the store is.
"""

import hashlib
import logging
import math
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensana.errors import ConfigError, OpensanaError
from opensana.serve.errors import ApiError
from opensana.serve.jobs.order import Order
from opensana.serve.jobs.relay import Message
from opensana.serve.logs import log
from opensana.serve.painter import Painter, Plan
from opensana.serve.replicas.dispatcher import LOOK_SECONDS, ReplicaLost, Replicas, ReplicasFull
from opensana.serve.replicas.replica import Replica, Task
from opensana.workers.cluster import LOCAL, gpu_share, joined

DEPLOYMENT = "painter"
QUESTIONS = 4
"""How many orders a replica may plan beside the pictures that it draws."""
PLAN_SECONDS = 30.0
UPSCALE_SECONDS, DOWNSCALE_SECONDS = 10.0, 300.0
HEALTH_SECONDS = 2.0
STOP_SECONDS = 600.0
"""How long a replica that is not needed any more may draw what it has begun."""
BLIND = 10
"""After so many looks in vain no replica counts as ready."""


@dataclass(frozen=True)
class Scale:
    """How many replicas there are."""

    least: int
    most: int


def read_scale(text: str) -> Scale:
    """`2`, or `1..4` for as many as the work needs; ConfigError."""
    least, dots, most = text.partition("..")
    if least.isdecimal() and (most.isdecimal() if dots else True):
        scale = Scale(int(least), int(most or least))
        if 1 <= scale.least <= scale.most:
            return scale
    raise ConfigError(f"--replicas is a number or a range, got {text!r}; try 2 or 1..4")


@contextmanager
def ray_replicas(
    address: str,
    scale: Scale | None,
    open_painter: Callable[[], Painter[Any]],
    *,
    batch: int,
    folder: Path,
    gpus: bool = True,
) -> Iterator["RayReplicas"]:
    """Replicas that draw up to `batch` pictures at once each, on the Ray at an address.

    One at least is ready. `open_painter` is called in each, on a share of the GPUs if there are any
    and `gpus`. Without a scale there is one replica on each GPU, or one. A server that comes after
    one that was killed takes over the replicas of its `folder`. OpensanaError if the model cannot
    be loaded, or for an address without Ray; ConfigError for one of Ray's client.
    """
    if "://" in address:
        raise ConfigError(
            f"--ray {address} is for Ray's client, which cannot stream; run this on a "
            "machine of the cluster, and try --ray auto"
        )
    with joined(address, scale.most if scale else 1, extra="ray", module="ray.serve") as ray:
        serve = ray.serve
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        found = int(ray.cluster_resources().get("GPU", 0)) if gpus else 0
        scale = scale or Scale(max(1, found), max(1, found))
        name = f"opensana-{_digest(folder)}"
        before = serve.status()
        serve.start(proxy_location="Disabled")
        room = 2 * batch
        deployment = serve.deployment(
            Replica,
            name=DEPLOYMENT,
            max_ongoing_requests=room + QUESTIONS,
            max_queued_requests=room,
            ray_actor_options=_needs(ray, found, scale.most),
            health_check_period_s=HEALTH_SECONDS,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=STOP_SECONDS,
            **_scaling(scale, batch),
        )
        target = serve.RunTarget(deployment.bind(open_painter, batch), name, route_prefix=None)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        replicas = RayReplicas(ray, handle, name, room)
        try:
            replicas.start()
            yield replicas
        finally:
            replicas.stop()
            if address != LOCAL:  # there all of it ends with this process
                serve.delete(name)
                others = before.applications.keys() - {name}
                if not (others or before.proxies or serve.status().applications):
                    serve.shutdown()


def _digest(folder: Path) -> str:
    """Of a folder on this machine."""
    return hashlib.sha256(f"{socket.gethostname()}:{folder.resolve()}".encode()).hexdigest()[:12]


def _needs(ray: Any, gpus: int, most: int) -> dict[str, float]:
    """What Ray sets aside for one of `most` replicas; its CPUs are also its threads."""
    if gpus:
        return {"num_gpus": gpu_share(gpus, most)}
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    nodes = [cpus for cpus in nodes if cpus >= 1]
    on_one = math.ceil(most / max(1, len(nodes)))
    return {"num_cpus": max(1, min(nodes, default=1) // on_one)}


def _scaling(scale: Scale, batch: int) -> dict[str, Any]:
    """Ray adds replicas while each has more than a batch, and so has pictures that wait."""
    if scale.least == scale.most:
        return {"num_replicas": scale.least}
    return {
        "autoscaling_config": {
            "min_replicas": scale.least,
            "initial_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": batch,
            "upscale_delay_s": UPSCALE_SECONDS,
            "downscale_delay_s": DOWNSCALE_SECONDS,
        }
    }


class RayReplicas(Replicas):
    """Those of one deployment."""

    def __init__(self, ray: Any, handle: Any, name: str, room: int) -> None:
        self._ray, self._handle, self._name, self.room = ray, handle, name, room
        self._count = 0
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="replicas", daemon=True)

    def start(self) -> None:
        """Wait for the first replica; OpensanaError if it cannot draw."""
        while not self._look():
            time.sleep(0.1)
        self._watcher.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._watcher.is_alive():
            self._watcher.join()

    @property
    def count(self) -> int:
        return self._count

    def about(self) -> dict[str, Any]:
        return self._handle.about.remote().result()

    def refresh(self) -> None:
        """Nothing: each lists its LoRAs when it starts, and a call would reach but one of them."""

    def plan(self, order: Order) -> Plan:
        found = self._planned(order)
        if isinstance(found, OpensanaError):
            raise found
        return found

    def _planned(self, order: Order) -> Plan | OpensanaError:
        for _ in range(3):
            try:
                asked = self._handle.plan.remote(order.text, order.pictures)
                return asked.result(timeout_s=PLAN_SECONDS)
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.TaskCancelledError):
                continue  # another replica knows it as well
            except (TimeoutError, self._ray.serve.exceptions.RayServeException):
                break
        message = "the replicas have no room; wait until one has"
        raise ApiError(503, message, code="replicas_full", retry_after=5)

    async def draw(self, task: Task) -> AsyncGenerator[list[Message], None]:
        errors, ended = self._ray.exceptions, False
        response = self._handle.options(stream=True).draw.remote(task)
        try:
            async for messages in response:
                yield messages
            ended = True
        except self._ray.serve.exceptions.RayServeException as error:
            raise ReplicasFull(str(error)) from error
        except errors.RayTaskError:
            raise  # it drew, and failed
        except errors.RayError as error:
            raise ReplicaLost(type(error).__name__) from error
        finally:
            if not ended:
                response.cancel()

    def _look(self) -> int:
        """Count those that are ready; OpensanaError where the first one could not begin."""
        app = self._ray.serve.status().applications[self._name]
        painter = app.deployments.get(DEPLOYMENT)
        states = painter.replica_states if painter else {}
        count = sum(number for state, number in states.items() if str(state) == "RUNNING")
        if count != self._count:
            log("replicas", ready=count)
        elif not self._count and painter and "Error" in painter.message:
            raise OpensanaError(f"a replica failed: {painter.message.strip().splitlines()[-1]}")
        self._count = count
        return count

    def _watch(self) -> None:
        failures = 0
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                self._look()
                failures = 0
            except Exception as error:
                failures += 1
                if failures == BLIND:
                    log("replicas", ready=0, message=str(error))
                    self._count = 0
