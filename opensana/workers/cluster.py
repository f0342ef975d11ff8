"""Work on many machines: Ray Data maps a callable, held by actors, over blocks.

A block whose worker dies is run again by another worker; its results are yielded once. Data, models
and results must have the same paths on every machine.
"""

import importlib
import logging
import math
import os
import pickle
import secrets
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, TypeVar

from opensana.errors import ConfigError, MissingExtraError, OpensanaError

LOCAL = "local"
CONNECT_SECONDS = 5.0
DEATHS = 3
"""How many workers one block may kill."""

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}

Block = TypeVar("Block")
Result = TypeVar("Result")
Work = Callable[[Block], Iterable[Result]]


class Cluster:
    """Runs callables on the workers of a Ray cluster; use `connected`."""

    def __init__(self, ray: Any, workers: int | None) -> None:
        self.ray = ray
        gpus = int(ray.cluster_resources().get("GPU", 0))
        self.workers = workers or max(1, gpus)
        self._needs = {"num_gpus": gpu_share(gpus, self.workers)} if gpus else {"num_cpus": 1}

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a function once, on a worker, and return its result."""
        with self._errors():
            return self.ray.get(self.ray.remote(**self._needs)(_call).remote(function))

    def map(
        self,
        open_work: Callable[[], Work[Block, Result]],
        blocks: Sequence[Block],
        *,
        ordered: bool = False,
    ) -> Generator[Result, None, None]:
        """The results of all blocks, as completed or in the order of the blocks.

        Each worker calls `open_work` once. OpensanaError if a worker raises, or if a block has
        killed more than DEATHS workers.
        """
        if not blocks:
            return
        begun = self.ray.remote(num_cpus=0)(_Begun).remote()
        rows = [{"number": n, "block": pickle.dumps(block)} for n, block in enumerate(blocks)]
        with self._errors():
            data = _quiet_data(ordered)
            size = min(self.workers, len(rows))  # Ray warns of idle workers
            pool = data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1)
            results = data.from_items(rows, override_num_blocks=len(rows)).flat_map(
                _Worker, fn_constructor_args=(open_work, begun), compute=pool, **self._needs
            )
            with closing(iter(results.iter_rows())) as found:
                for row in found:
                    if row["error"]:
                        raise OpensanaError(f"a worker failed: {row['error']}")
                    yield pickle.loads(row["result"])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self.ray.exceptions.RayError as error:
            raise OpensanaError(f"a worker failed: {_last_line(error)}") from error


def _call(function: Callable[[], Result]) -> Result:
    return function()


class _Begun:
    """Counts how often each block was started."""

    def __init__(self) -> None:
        self.times = Counter[int]()

    def add(self, number: int) -> int:
        self.times[number] += 1
        return self.times[number]


class _Worker:
    """The actor of Ray Data. It opens its work with the first block: dying there is counted."""

    def __init__(self, open_work: Callable[[], Work[Any, Any]], begun: Any) -> None:
        self.open_work, self.begun = open_work, begun
        self.work: Work[Any, Any] | None = None

    def __call__(self, row: Mapping[str, Any]) -> Iterator[dict[str, bytes | str]]:
        """The results of a block, or one error; Ray Data would wrap a raised one in advice."""
        try:
            for result in self._results(row):
                yield {"result": pickle.dumps(result), "error": ""}
        except Exception as error:
            yield {"result": b"", "error": _last_line(error)}

    def _results(self, row: Mapping[str, Any]) -> Iterable[Any]:
        import ray

        times: Any = ray.get(self.begun.add.remote(row["number"]))
        if times > DEATHS:
            raise OpensanaError(f"block {row['number']} has killed {DEATHS} workers")
        if self.work is None:
            self.work = self.open_work()
        return self.work(pickle.loads(row["block"]))


@contextmanager
def connected(address: str, workers: int | None) -> Iterator[Cluster]:
    """A cluster at an address, or a new one on this machine (`local`) that ends with the block."""
    with joined(address, workers or 1, extra="cluster", module="ray.data") as ray:
        yield Cluster(ray, workers)


@contextmanager
def joined(address: str, workers: int, *, extra: str, module: str) -> Iterator[Any]:
    """The module ray, connected as `connected` says; MissingExtraError without `module`.

    A new cluster has a CPU at least for each worker and a secret of its own, as Ray listens to
    every network and runs what it is sent.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address == LOCAL and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        # Read when Ray is imported.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    token = "RAY_AUTH_MODE" in os.environ
    try:
        import ray

        importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(extra, "ray") from None
    start = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR)
    try:
        if address not in (
            LOCAL,
            "auto",
        ):  # Ray itself would try an unreachable one for ten minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        if address == LOCAL:
            start(LOCAL, include_dashboard=False, num_cpus=max(os.cpu_count() or 1, workers))
        else:
            start(address)
    except (OSError, ValueError, RuntimeError) as error:
        hint = "" if address == LOCAL or token else "; if it has a token, set RAY_AUTH_MODE=token"
        raise OpensanaError(f"no Ray cluster at {address!r}: {_last_line(error)}{hint}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def gpu_share(gpus: int, workers: int) -> float:
    """The share of a GPU with which so many workers fit on so many."""
    return 1 / math.ceil(workers / gpus)


def check_workers(address: str | None, workers: int | None) -> None:
    """ConfigError unless the number of workers is positive and used with a cluster."""
    if workers is not None and (workers < 1 or address is None):
        raise ConfigError("--workers is a positive number, and goes with --ray")


def _quiet_data(ordered: bool) -> Any:
    """The module ray.data, silenced; results keep the blocks' order if `ordered`."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of its own use
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = ordered
    return ray.data


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
