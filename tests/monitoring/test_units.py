from __future__ import annotations

import pytest

from lightning_edgesplit.monitoring.units import digits, percent, rate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0004, "4e-04"),
        (0.0123, "0.012"),
        (0.123, "0.12"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.4, "1234"),
    ],
)
def test_numbers_have_about_three_digits(value, text):
    assert digits(value) == text


def test_a_time_that_was_not_predicted_is_a_dash():
    assert digits(float("nan")) == "-"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "no limit"), (2e7, "20 Mbit/s"), (1.5e9, "1.5 Gbit/s"), (800, "800 bit/s")]
)
def test_rates_are_in_bits_per_second(value, text):
    assert rate(value) == text


def test_small_shares_do_not_read_as_none():
    assert (percent(0.004), percent(0.25), percent(0)) == ("0.4 %", "25 %", "0 %")
