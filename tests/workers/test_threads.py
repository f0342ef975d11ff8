import time
from collections.abc import Iterator
from threading import Lock

import pytest

from opensana.workers.threads import in_flight


def test_answers_come_as_they_are_done_and_few_are_asked_for() -> None:
    taken: list[float] = []
    running, most, lock = 0, 0, Lock()

    def seconds() -> Iterator[float]:
        for value in (0.2, 0.0, 0.02, 0.01):
            taken.append(value)
            yield value

    def work(value: float) -> float:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(value)
        with lock:
            running -= 1
        return value

    answers = in_flight(work, seconds(), at_once=2)
    assert next(answers) == 0.0 and taken == [0.2, 0.0]
    assert sorted(answers) == [0.01, 0.02, 0.2]
    assert most == 2


def test_an_error_of_the_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_flight(lambda value: 1 / value, [1, 0, 2], at_once=2))
    assert list(in_flight(str, [], at_once=2)) == []


def test_leaving_early_waits_for_nothing() -> None:
    answers = in_flight(lambda value: time.sleep(value) or value, [0, 5, 5], at_once=3)
    start = time.monotonic()
    assert next(answers) == 0
    answers.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 4
