from __future__ import annotations

import math

import pytest

from lightning_edgesplit.scheduling import ClientProfile
from lightning_edgesplit.scheduling.measured import CutTimes, LayerTimes
from lightning_edgesplit.scheduling.trace import Conditions, Trace

GOOD = """seconds,client,uplink,downlink,slowdown,available
0,a,1e6,2e6,1,1
0,b,3e6,4e6,2,1
10,a,5e5,2e6,1,1

12.5,a,5e5,2e6,4,0
30,b,3e6,4e6,2,0
"""


def load(text: str, tmp_path, clients=("a", "b", "c")):
    (tmp_path / "trace.csv").write_text(text)
    return Trace.load(tmp_path / "trace.csv", clients)


def test_a_line_holds_from_its_second_until_the_clients_next(tmp_path):
    trace = load(GOOD, tmp_path)
    first, second, last = Conditions(1e6, 2e6, 1.0), Conditions(5e5, 2e6, 1.0), Conditions(5e5, 2e6, 4.0, False)
    for seconds, expected in ((0, first), (9.999, first), (10, second), (12.4, second), (12.5, last), (1e9, last)):
        assert trace.at("a", seconds) == expected, seconds
    assert trace.at("b", 29.9) == Conditions(3e6, 4e6, 2.0)
    assert trace.at("b", 30.0) == Conditions(3e6, 4e6, 2.0, False)
    assert trace.at("c", 30.0) == Conditions()  # never changes


def test_the_next_change_is_after_the_second_that_is_asked_for(tmp_path):
    trace = load(GOOD, tmp_path)
    asked = {0: 10, 9.9: 10, 10: 12.5, 12.5: math.inf}
    assert {now: trace.next_change("a", now) for now in asked} == asked
    assert trace.next_change("c", 0) == math.inf


def test_a_column_that_is_left_out_leaves_the_profile_as_it_is(tmp_path):
    trace = load("client,seconds,available\na,0,1\na,5,0\n", tmp_path)
    assert trace.at("a", 5) == Conditions(available=False)
    profile = ClientProfile("a", flops=8e9, uplink=1e6)
    assert trace.at("a", 5).of(profile) == profile


def test_conditions_replace_rates_and_slow_a_client_down_however_its_speed_is_given():
    now = Conditions(uplink=1e5, slowdown=4.0)
    times = LayerTimes("pi.csv", (CutTimes("end", 1.0, 2.0),))
    profile = ClientProfile("a", flops=8e9, memory=1e9, uplink=1e6, downlink=2e6, latency=0.1)
    assert now.of(profile) == ClientProfile("a", flops=2e9, memory=1e9, uplink=1e5, downlink=2e6, latency=0.1)
    assert now.of(ClientProfile("a", slowdown=3.0)) == ClientProfile("a", slowdown=12.0, uplink=1e5)
    assert now.of(ClientProfile("a")) == ClientProfile("a", slowdown=4.0, uplink=1e5)
    assert now.of(ClientProfile("a", times=times)) == ClientProfile("a", slowdown=4.0, uplink=1e5, times=times)


@pytest.mark.parametrize(
    ("before", "after", "line", "column", "message"),
    [
        ("10,a,", "0,a,", 4, "seconds", "0 of 'a' comes twice"),
        ("12.5,a,", "9,a,", 6, "seconds", "9 of 'a' comes after 10: sort"),
        ("\n0,b,3e6", "\n1,b,3e6", 3, "seconds", "'b' begins at 1: say what holds from 0 on"),
        ("10,a,5e5", "nan,a,5e5", 4, "seconds", "nan must be >= 0"),
        ("10,a,5e5", "-1,a,5e5", 4, "seconds", "-1 must be >= 0"),
        ("0,a,1e6", "0,a,nan", 2, "uplink", "nan must be > 0"),
        ("0,a,1e6", "0,a,-1e6", 2, "uplink", "-1e6 must be > 0"),
        ("0,a,1e6,2e6", "0,a,1e6,0", 2, "downlink", "0 must be > 0"),
        ("0,a,1e6,2e6,1", "0,a,1e6,2e6,inf", 2, "slowdown", "inf must be > 0 and finite"),
        ("0,a,1e6,2e6,1,1", "0,a,1e6,2e6,1,yes", 2, "available", "'yes' must be 0 or 1"),
        ("0,a,1e6", "0,a,fast", 2, "uplink", "'fast' is no number"),
        ("0,a,1e6", "0,a,", 2, "uplink", "the cell is empty"),
        ("\n0,b,3e6", "\n0,,3e6", 3, "client", "the cell is empty"),
        ("30,b,", "30,d,", 7, "client", "'d' is unknown. Known: a, b, c"),
        ("30,b,3e6,4e6,2,0", "30,b,3e6,4e6,2", 7, "available", "5 cells, the header 6"),
        ("30,b,3e6,4e6,2,0", "30,b,3e6,4e6,2,0,1", 7, "available", "7 cells, the header 6"),
        ("uplink,down", "upload,down", 1, "upload", "unknown. Columns are seconds, client, and may be uplink"),
        ("uplink,down", "downlink,down", 1, "downlink", "there twice"),
        ("seconds,client", "time,client", 1, "seconds", "it is missing"),
        (GOOD, "seconds,client\n0,a\n", 1, "uplink", "nothing changes"),
        (GOOD, "seconds,client,uplink\n", 2, "seconds", "nothing stands below the header"),
        (GOOD, "", 1, "seconds", "it is missing"),
    ],
)
def test_a_mistake_is_an_error_with_file_line_and_column(before, after, line, column, message, tmp_path):
    assert GOOD.count(before) == 1
    with pytest.raises(ValueError, match=rf"trace\.csv, line {line}, column '{column}': .*{message}"):
        load(GOOD.replace(before, after), tmp_path)


def test_what_cannot_be_asked_is_said(tmp_path):
    trace = load(GOOD, tmp_path)
    with pytest.raises(ValueError, match=r"client='d' is not in the trace\. It has a, b, c"):
        trace.at("d", 0)
    for seconds in (-1.0, math.nan):
        with pytest.raises(ValueError, match="must be >= 0"):
            trace.at("a", seconds)


def test_a_trace_made_by_hand_is_checked_too():
    here = Conditions()
    assert Trace(("a",), {"a": (0.0, 1.0)}, {"a": (here, here)}).next_change("a", 0) == 1.0
    for seconds in ((), (1.0,), (0.0, 0.0), (0.0, 2.0, 1.0)):
        with pytest.raises(ValueError, match="must begin at 0 and increase"):
            Trace(("a",), {"a": seconds}, {"a": (here,) * len(seconds)})
    with pytest.raises(ValueError, match="'b', which is none of a"):
        Trace(("a",), {"b": (0.0,)}, {"b": (here,)})
    with pytest.raises(ValueError, match="2 times and 1 conditions"):
        Trace(("a",), {"a": (0.0, 1.0)}, {"a": (here,)})
    with pytest.raises(ValueError, match=r"clients \['a'\], conditions \[\]"):
        Trace(("a",), {"a": (0.0, 1.0)})
