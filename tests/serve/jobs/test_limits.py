"""How often a key may ask."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opensana.errors import ConfigError
from opensana.serve.errors import ApiError
from opensana.serve.jobs.limits import Limits, Rates

PAUSES = st.lists(st.floats(0, 40), min_size=1, max_size=200)


@given(rate=st.integers(1, 30), pauses=PAUSES)
def test_a_key_gets_its_requests_in_any_minute_and_not_one_more(
    rate: int, pauses: list[float]
) -> None:
    now = [0.0]
    rates, taken = Rates(rate, clock=lambda: now[0]), list[float]()
    for pause in pauses:
        now[0] += pause
        recent = sum(now[0] - time < 60 for time in taken)
        if recent == rate:
            with pytest.raises(ApiError, match="requests a minute") as caught:
                rates.take("ann")
            assert caught.value.status == 429
            now[0] += int(caught.value.headers["retry-after"])
        rates.take("ann")  # also who comes when it was told to
        taken.append(now[0])


def test_each_key_has_its_own() -> None:
    rates = Rates(1, clock=lambda: 0.0)
    rates.take("ann")
    rates.take("bob")
    with pytest.raises(ApiError):
        rates.take("ann")


def test_a_rate_below_one_is_one_request_in_a_longer_time() -> None:
    now = [0.0]
    rates = Rates(0.5, clock=lambda: now[0])
    rates.take("ann")
    with pytest.raises(ApiError) as caught:
        rates.take("ann")
    assert caught.value.headers["retry-after"] == "120"
    now[0] = 120.0
    rates.take("ann")


@pytest.mark.parametrize("rate", [0, -1, math.nan])
def test_a_rate_is_above_0(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate must be above 0"):
        Limits(rate=rate)
