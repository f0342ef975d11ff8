"""Who takes the next step, on a clock of the test's own."""

from collections import Counter
from dataclasses import dataclass

from opensana.serve.jobs.schedule import CREDIT, PATIENCE, Schedule, Waiting


@dataclass
class Work:
    key: str
    lane: str
    steps: int
    seconds: float = 1.0
    since: float = 0.0
    begun: bool = False


def waits(name: str, job: Work) -> Waiting:
    left = job.steps * job.seconds
    return Waiting(
        name, 0, job.key, job.lane, left=left, step=job.seconds, begun=job.begun, since=job.since
    )


def run(jobs: dict[str, Work], *, most: int = 1, until: float = 1e9) -> list[list[str]]:
    """The jobs of each batch, where a batch takes as long as the first of its steps."""
    schedule, now, batches = Schedule(), 0.0, list[list[str]]()
    while any(job.steps for job in jobs.values()) and now < until:
        waiting = [waits(name, job) for name, job in jobs.items() if job.steps and job.since <= now]
        chosen = schedule.choose(waiting, now, most)
        seconds = jobs[chosen[0].job].seconds
        now += seconds
        for one in chosen:
            schedule.charge(one.key, seconds / len(chosen))
            jobs[one.job].steps -= 1
            jobs[one.job].begun = True
            jobs[one.job].since = now
        batches.append([one.job for one in chosen])
    return batches


def test_the_job_with_the_least_left_goes_first() -> None:
    order = run({"long": Work("a", "x", 3), "short": Work("a", "x", 1)})
    assert order == [["short"], ["long"], ["long"], ["long"]]


def test_a_lane_that_has_its_turn_goes_first_while_any_of_it_waits() -> None:
    schedule = Schedule()
    jobs = {"short": Work("a", "x", 1), "long": Work("b", "y", 9)}
    waiting = [waits(name, job) for name, job in jobs.items()]
    chosen = [schedule.choose(waiting, 0.0, 8, lane) for lane in (None, "y", "z")]
    assert [[one.job for one in batch] for batch in chosen] == [["short"], ["long"], ["short"]]


def test_two_keys_share_equally_however_much_they_ask_for() -> None:
    jobs = {f"a{n}": Work("a", "x", 10) for n in range(9)} | {"b": Work("b", "y", 10)}
    first = [batch[0] for batch in run(jobs)[:20]]
    assert first.count("b") == 10


def test_a_long_job_gets_its_part_beside_many_short_ones() -> None:
    jobs = {f"s{n}": Work("a", "x", 1) for n in range(100)}
    jobs["long"] = Work("a", "y", 50, since=-1)
    turns = Counter(batch[0] for batch in run(jobs)[:60])
    assert turns["long"] >= 60 / (PATIENCE + 2)


def test_a_batch_is_of_one_lane_and_shared_among_keys() -> None:
    jobs = {f"a{n}": Work("a", "x", 5) for n in range(6)} | {"b": Work("b", "x", 5)}
    jobs["other"] = Work("c", "y", 5)
    for batch in run(jobs, most=2):
        assert len({jobs[name].lane for name in batch}) == 1
        if jobs["b"].steps and "other" not in batch:
            assert "b" in batch


def test_a_key_that_was_idle_goes_first_for_its_credit_alone() -> None:
    schedule = Schedule()
    old = waits("old", Work("old", "x", 10**6))
    for now in range(1000):
        schedule.choose([old], float(now), 1)
        schedule.charge("old", 1.0)
    new = waits("new", Work("new", "y", 10**6, since=1000.0))
    turns = list[str]()
    for _ in range(40):
        (one,) = schedule.choose([old, new], 1000.0, 1)
        schedule.charge(one.key, 1.0)
        turns.append(one.key)
    assert turns[: int(CREDIT)] == ["new"] * int(CREDIT)
    assert turns[int(CREDIT) + 2 :].count("old") >= 13
