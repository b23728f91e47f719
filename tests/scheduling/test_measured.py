from __future__ import annotations

import pytest

from lightning_edgesplit.scheduling import (
    ClientProfile,
    Costs,
    CutCost,
    Exact,
    LatencyModel,
    ServerProfile,
    load_clients,
    simulate,
)
from lightning_edgesplit.scheduling.measured import CutTimes, LayerTimes, apply, load_layer_times

LAYERS = """layer,client_forward_seconds,client_backward_seconds,server_seconds
conv,0.010,0.015,0.0004
body,0.040,0.080,0.0020
head,0.001,0.002,0.0001
"""
CUTS = """cut,client_forward_seconds,client_backward_seconds
conv,0.01,0.015
end,0.051,0.097
"""


def load(text: str, tmp_path):
    (tmp_path / "pi.csv").write_text(text)
    return load_layer_times(tmp_path / "pi.csv")


def cost(name: str, **seconds: float) -> CutCost:
    return CutCost(name, 1e6, 2e6, 0.0 if name == "end" else 3e6, 0.0, 0.0, 0.0, **seconds)


def values(times: LayerTimes):
    return [(cut.name, cut.client_forward, cut.client_backward, cut.server) for cut in times.cuts]


def test_layers_are_summed_before_the_cut_and_behind_it_for_the_server(tmp_path):
    expected = [
        ("conv", 0.010, 0.015, 0.0021), ("body", 0.050, 0.095, 0.0001), ("head", 0.051, 0.097, 0.0),
        ("end", 0.051, 0.097, 0.0),
    ]  # fmt: skip
    for (name, *numbers), (want, *wanted) in zip(values(load(LAYERS, tmp_path)), expected, strict=True):
        assert name == want
        assert numbers == pytest.approx(wanted, rel=1e-12)


def test_cuts_are_taken_as_they_are(tmp_path):
    assert values(load(CUTS, tmp_path)) == [("conv", 0.01, 0.015, None), ("end", 0.051, 0.097, None)]


def test_a_round_of_a_client_with_times_of_its_own_takes_as_long_as_they_say(tmp_path):
    times = load(LAYERS, tmp_path)
    costs = Costs((cost("conv", client_forward_seconds=9.0, client_backward_seconds=9.0), cost("end")), (2, 2), (5, 5))
    clients = [ClientProfile("pi", times=times, slowdown=3.0), ClientProfile("b", flops=1e9)]
    model = LatencyModel(costs, clients, ServerProfile(flops=1e10))
    pi = 5 * 2 * (3 * (0.010 + 0.015) + 2 * 3e6 / 1e10)  # two clients share the server
    other = 5 * 2 * (3e6 / 1e9 + 2 * 3e6 / 1e10)
    assert model.round_time(0, 0, 0.5) == pytest.approx(pi, rel=1e-12)
    assert model.round_time(1, 0, 0.5) == pytest.approx(other, rel=1e-12)
    assert model.round_time(0, 1, 0.5) == pytest.approx(5 * 2 * 3 * (0.051 + 0.097), rel=1e-12)
    assert model.at_share(0.5)[0] == pytest.approx([pi, 10 * 3 * 0.148], rel=1e-12)
    plan = Exact().plan(costs, clients, ServerProfile(flops=1e10))
    assert plan.cuts[0] == "conv"
    assert simulate(model, plan).seconds[0]["forward"] == pytest.approx(5 * 2 * 3 * 0.010, rel=1e-12)


def test_applied_times_hold_for_the_clients_without_a_speed_of_their_own(tmp_path):
    costs = Costs((cost("conv", server_seconds=7.0), cost("end", client_forward_seconds=7.0)), (1, 1), (1, 1))
    applied = apply(costs, load(LAYERS, tmp_path))
    assert applied["conv"] == cost(
        "conv", client_forward_seconds=0.010, client_backward_seconds=0.015, server_seconds=0.0020 + 0.0001
    )
    assert (applied.batch, applied.steps) == (costs.batch, costs.steps)
    model = LatencyModel(applied, [ClientProfile("a"), ClientProfile("b", slowdown=2.0)], ServerProfile())
    assert model.round_time(0, 0, 0.5) == pytest.approx(0.025 + 2 * 0.0021)
    assert model.round_time(1, 0, 0.5) == pytest.approx(2 * 0.025 + 2 * 0.0021)
    kept = apply(costs, load(CUTS, tmp_path))
    assert kept["conv"].server_seconds == 7.0
    assert kept["end"].client_forward_seconds == 0.051


def test_a_cut_that_was_not_measured_is_named(tmp_path):
    costs = Costs((cost("stem"), cost("end")), (1,), (1,))
    for use in (
        lambda times: apply(costs, times),
        lambda times: LatencyModel(costs, [ClientProfile("a", times=times)], ServerProfile(1e9)).round_time(0, 0, 1.0),
    ):
        with pytest.raises(ValueError, match=r"pi\.csv has no times of the cut 'stem'.*It has conv, end"):
            use(load(CUTS, tmp_path))


def test_a_file_of_clients_names_the_times_beside_it(tmp_path):
    times = load(CUTS, tmp_path)
    path = tmp_path / "clients.yaml"
    path.write_text("clients: [{name: pi, device: raspberry-pi-4, times: pi.csv, count: 2}, {name: b, flops: 1e9}]")
    profiles = load_clients(path)[0]
    wanted = ClientProfile("pi-1", memory=2e9, times=times, power_busy=7.2, power_idle=1.6)
    assert profiles[1] == wanted, "measured times win over the catalogue's FLOP/s"
    assert profiles[2].times is None
    path.write_text("clients: [{name: pi, times: pie.csv}]")
    with pytest.raises(FileNotFoundError, match=r"clients\.yaml at 'clients\[0\]\.times': .*pie\.csv: no such file"):
        load_clients(path)
    path.write_text("clients: [{name: pi, times: pi.csv, flops: 1e9}]")
    with pytest.raises(
        ValueError, match=r"'clients\[0\]': flops=1000000000.0 and times='.*pi\.csv' of client 'pi' excl"
    ):
        load_clients(path)
    (tmp_path / "pi.csv").write_text(CUTS.replace("0.051", "nan"))
    path.write_text("clients: [{name: pi, times: pi.csv}]")
    with pytest.raises(ValueError, match=r"'clients\[0\]': .*pi\.csv, line 3, column 'client_forward_seconds': nan"):
        load_clients(path)


@pytest.mark.parametrize(
    ("before", "after", "line", "column", "message"),
    [
        ("body,", "conv,", 3, "layer", "'conv' comes twice"),
        ("head,", "end,", 4, "layer", "'end' is no layer"),
        ("0.040", "-0.040", 3, "client_forward_seconds", "-0.040 must be >= 0"),
        ("0.080", "", 3, "client_backward_seconds", "the cell is empty"),
        ("0.0020", "x", 3, "server_seconds", "'x' is no number"),
        ("layer,", "cut,layer,", 1, "cut", "`cut` or `layer`, one of them"),
        ("layer,", "", 1, "cut", "`cut` or `layer`, one of them"),
        ("layer,", "module,", 1, "module", "unknown"),
        ("client_backward_seconds", "backward", 1, "client_backward_seconds", "missing"),
    ],
)
def test_a_mistake_is_an_error_with_file_line_and_column(before, after, line, column, message, tmp_path):
    assert LAYERS.count(before) == 1
    text = LAYERS.replace(before, after)
    if after == "cut,layer,":
        text = "\n".join(["x," + row if at else row for at, row in enumerate(text.strip().split("\n"))])
    if not after and before == "layer,":
        text = "\n".join([row.split(",", 1)[1] if at else row for at, row in enumerate(text.strip().split("\n"))])
    with pytest.raises(ValueError, match=rf"pi\.csv, line {line}, column '{column}': .*{message}"):
        load(text, tmp_path)


def test_times_made_by_hand_are_checked_too():
    with pytest.raises(ValueError, match="mine: there are no times"):
        LayerTimes("mine", ())
    with pytest.raises(ValueError, match="mine: the cut 'a' comes twice"):
        LayerTimes("mine", (CutTimes("a", 1, 1), CutTimes("a", 2, 2)))
    with pytest.raises(ValueError, match="mine: nan s of the cut 'a'"):
        LayerTimes("mine", (CutTimes("a", 1, float("nan")),))
