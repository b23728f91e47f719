from __future__ import annotations

import io
from dataclasses import replace

import pytest
from monitoring_samples import sample_plan, sample_report
from rich.console import Console

from lightning_edgesplit.monitoring.console import plan_table, print_plan, print_round, round_line

NAMES = ["raspberry-pi-4", "jetson-nano", "jetson-orin-nx", "workstation-gpu"]


def printed(show, *arguments) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    show(*arguments, console=console)
    return console.file.getvalue()


def test_a_plan_fits_80_columns_and_names_every_client_cut_share_and_rate():
    text = printed(print_plan, sample_plan(), NAMES)
    assert max(map(len, text.splitlines())) <= 80
    rows = {name: next(line for line in text.splitlines() if line.startswith(name)) for name in NAMES}
    assert all(f"layer{k}" in rows[name] for name, k in zip(NAMES, (1, 2, 3, 3), strict=True))
    assert "37 %" in rows["raspberry-pi-4"]
    assert "7.4 Mbit/s" in rows["raspberry-pi-4"]
    assert "no limit" in rows["raspberry-pi-4"]
    assert [name for name in NAMES if rows[name].rstrip().endswith("*")] == ["raspberry-pi-4"]


def test_a_client_that_the_policy_leaves_out_takes_no_part():
    text = printed(print_plan, replace(sample_plan(), left_out=(2,)), NAMES)
    row = next(line for line in text.splitlines() if line.startswith(NAMES[2]))
    assert row.split() == [NAMES[2], "takes", "no", "part"]


def test_other_policies_stand_below_with_how_much_faster_the_plan_is():
    text = printed(print_plan, sample_plan(), NAMES, {"fedavg": 49.0, "uniform": 24.5})
    lines = [line.split() for line in text.splitlines()]
    assert ["uniform", "24.5", "s", "2.00x"] in lines
    assert ["fedavg", "49.0", "s", "4.00x"] in lines


def test_of_very_many_clients_the_slowest_are_shown():
    few, times = sample_plan(), [float((7 * k) % 100) for k in range(100)]
    plan = replace(
        few, cuts=few.cuts[:1] * 100, shares=(0.01,) * 100, uplink=few.uplink[:1] * 100,
        downlink=few.downlink[:1] * 100, predicted=tuple(times),
    )  # fmt: skip
    lines = printed(print_plan, plan, [f"client-{k}" for k in range(100)]).splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("client-")]
    assert shown == [f"client-{k}" for k in range(100) if times[k] >= 60]
    assert "and 60 more, which are faster or take no part" in [line.rstrip() for line in lines]


def test_there_is_one_name_per_client():
    with pytest.raises(ValueError, match="names has 1 entries, the plan 4 clients"):
        plan_table(sample_plan(), ["a"])


def test_a_round_fits_80_columns_and_accounts_for_every_client():
    report = sample_report()
    text = printed(print_round, report)
    assert max(map(len, text.splitlines())) <= 80
    for client in report.clients:
        assert client.name in text
        assert f"{client.cut}, {100 * client.share:.0f} %" in text
    assert "late" in text
    punctual = replace(report, clients=tuple(replace(client, overrun=0.0) for client in report.clients))
    assert "late" not in printed(print_round, punctual)


def test_long_names_of_cuts_stay_in_their_column():
    report = sample_report()
    long = tuple(replace(client, cut="net.features.denseblock2.denselayer11") for client in report.clients)
    assert max(map(len, printed(print_round, replace(report, clients=long)).splitlines())) <= 80


def test_a_round_in_a_line_compares_it_with_the_prediction():
    report = replace(sample_report(), seconds=12.0, predicted=10.0)
    assert round_line(report).startswith("round 3 (edgesplit): 12.0 s, predicted 10.0 s (+20 %)")
    assert f"slowest {report.slowest.name}" in round_line(report)


def test_a_plan_says_how_links_server_and_batches_are_used_where_that_is_unusual():
    usual, names = sample_plan(), NAMES
    assert "scheduled" not in printed(print_plan, usual, names)
    parts = (1, *[4] * (len(names) - 1))
    other = replace(
        usual, disciplines=("longest_first", "fair"), order="longest_first", micro_batches=parts, compression="int8"
    )
    text = printed(print_plan, other, names)
    for words in ("up longest first, down fair", "server serves longest first", "micro-batches: 1 to 4", "as int8"):
        assert words in text


def test_batches_that_the_plan_sets_stand_in_its_table_and_in_that_of_the_round():
    assert "batch" not in printed(print_plan, sample_plan(), NAMES)
    text = printed(print_plan, replace(sample_plan(), batches=(3, 14, 25, 86)), NAMES)
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines() if line.startswith(tuple(NAMES))]
    assert [row[:3] for row in rows] == [
        [name, cut, batch]
        for name, cut, batch in zip(
            NAMES, ("layer1", "layer2", "layer3", "layer3"), ("3", "14", "25", "86"), strict=True
        )
    ]
    report = sample_report()
    assert "batch" not in printed(print_round, report)
    text = printed(print_round, replace(report, clients=(replace(report.clients[0], batch=7), *report.clients[1:])))
    lines = [line.strip() for line in text.splitlines()]
    assert lines[[line.startswith("layer1, 37 %") for line in lines].index(True) + 1] == "batch 7"
    assert text.count("batch") == 1
    assert max(map(len, text.splitlines())) <= 80
