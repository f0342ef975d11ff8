"""The figures of /metrics."""

import prometheus_client as prometheus

from opensana.serve.jobs.job import JobRecord
from opensana.serve.painter import Plan

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self.requests = prometheus.Counter(
            "sana_requests_total", "HTTP requests", ["route", "code"], registry=registry
        )
        self.rejected = prometheus.Counter(
            "sana_rejected_total", "Orders that were not taken", ["reason"], registry=registry
        )
        self.jobs = prometheus.Counter(
            "sana_jobs_total", "Jobs by how they ended", ["state"], registry=registry
        )
        self.images = prometheus.Counter("sana_images_total", "Pictures drawn", registry=registry)
        self.nan = prometheus.Counter("sana_nan_total", "Jobs that became NaN", registry=registry)
        self.depth = prometheus.Gauge(
            "sana_queue_depth", "Jobs that are not finished", registry=registry
        )
        self.painters = prometheus.Gauge(
            "sana_painters", "Copies of the model that are ready to draw", registry=registry
        )
        self.wait = prometheus.Histogram(
            "sana_queue_wait_seconds",
            "From a job's coming to its begin",
            buckets=SECONDS,
            registry=registry,
        )
        self.generation = prometheus.Histogram(
            "sana_generation_seconds",
            "From a job's begin to its end",
            ["steps", "size"],
            buckets=SECONDS,
            registry=registry,
        )
        self.steps = prometheus.Histogram(
            "sana_step_seconds",
            "One step of a batch",
            buckets=(0.005, 0.01, 0.02, *SECONDS),
            registry=registry,
        )
        self.batch = prometheus.Histogram(
            "sana_batch_size",
            "Pictures that took a step together",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )

    def step(self, seconds: float, pictures: int) -> None:
        self.steps.observe(seconds)
        self.batch.observe(pictures)

    def waited(self, seconds: float) -> None:
        self.wait.observe(seconds)

    def picture(self) -> None:
        self.images.inc()

    def failed(self, code: str) -> None:
        if code == "nan":
            self.nan.inc()

    def ended(self, record: JobRecord, plan: Plan) -> None:
        self.jobs.labels(record.state).inc()
        if record.state == "completed" and record.started and record.finished:
            size = "x".join(map(str, plan.size))
            seconds = record.finished - record.started
            self.generation.labels(str(plan.steps), size).observe(seconds)

    def text(self) -> bytes:
        return prometheus.generate_latest(self.registry)
