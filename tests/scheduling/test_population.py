from __future__ import annotations

import math
from collections import Counter
from statistics import NormalDist, fmean, median, pvariance

import pytest

from lightning_edgesplit.scheduling import ClientProfile, load_clients
from lightning_edgesplit.scheduling.population import Kind, Population, Spread

PI = ClientProfile("pi", flops=1e10, memory=1e9, uplink=5e7, downlink=6e7, latency=0.01)
PHONE = ClientProfile("phone", slowdown=4.0, uplink=2e7)


def test_the_same_seed_gives_the_same_clients_and_another_seed_others():
    def drawn(seed: int, count: int = 50):
        return Population(count, (Kind(PI), Kind(PHONE, 3.0)), Spread(0.3, 0.3, 0.3, 0.3), seed).draw()

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)
    assert drawn(7, 80)[:50] == drawn(7)


def test_without_spread_every_client_is_its_kind_under_a_name_of_its_own():
    clients = Population(20, (Kind(PI), Kind(PHONE))).draw()
    assert [client.name.rsplit("-")[-1] for client in clients] == [str(k) for k in range(20)]
    kinds = {"pi": PI, "phone": PHONE}
    for client in clients:
        kind = kinds[client.name.split("-")[0]]
        assert client == ClientProfile(client.name, **{k: v for k, v in vars(kind).items() if k != "name"})


def test_kinds_are_drawn_in_proportion_to_their_weights():
    count, weights = 4000, {"a": 1.0, "b": 2.0, "c": 5.0}
    mixture = tuple(Kind(ClientProfile(name), weight) for name, weight in weights.items())
    seen = Counter(client.name.split("-")[0] for client in Population(count, mixture, seed=3).draw())
    for name, weight in weights.items():
        share = weight / 8
        assert abs(seen[name] - count * share) < 4 * math.sqrt(count * share * (1 - share)), name  # 4 σ of a binomial


@pytest.mark.parametrize("option", ["flops", "slowdown", "uplink", "downlink"])
def test_a_spread_value_is_log_normal_around_its_kinds(option):
    count, sigma = 4000, 0.4
    middle = 5.0 if option == "slowdown" else 5e7
    kind = Kind(ClientProfile("x", **{option: middle}))
    clients = Population(count, (kind,), Spread(**{option: sigma}), seed=1).draw()
    factors = [getattr(client, option) / middle for client in clients]
    logs = [math.log(factor) for factor in factors]
    # 4 standard errors each: of a normal's mean and variance, of a log-normal's mean, of the median
    assert abs(fmean(logs)) < 4 * sigma / math.sqrt(count)
    assert abs(pvariance(logs) - sigma**2) < 4 * sigma**2 * math.sqrt(2 / count)
    spread = math.sqrt((math.exp(sigma**2) - 1) * math.exp(sigma**2))
    assert abs(fmean(factors) - math.exp(sigma**2 / 2)) < 4 * spread / math.sqrt(count)
    assert abs(median(logs)) < 4 * sigma * math.sqrt(math.pi / 2 / count)
    inside = sum(abs(log) < sigma for log in logs) / count
    within = NormalDist().cdf(1) - NormalDist().cdf(-1)
    assert abs(inside - within) < 4 * math.sqrt(within * (1 - within) / count)


def test_values_of_one_client_are_drawn_each_on_its_own_and_a_spread_changes_no_other():
    wide = Population(3000, (Kind(PI),), Spread(uplink=0.5, downlink=0.5), seed=2).draw()
    up, down = (
        [math.log(getattr(client, way) / getattr(PI, way)) / 0.5 for client in wide] for way in ("uplink", "downlink")
    )
    assert abs(fmean(a * b for a, b in zip(up, down, strict=True))) < 4 / math.sqrt(3000)  # correlation of independents
    narrow = Population(3000, (Kind(PI),), Spread(uplink=0.5), seed=2).draw()
    assert [client.uplink for client in narrow] == [client.uplink for client in wide]
    assert {(client.downlink, client.flops, client.memory, client.latency) for client in narrow} == {
        (6e7, 1e10, 1e9, 0.01)
    }


def test_a_kind_without_the_value_stays_without_it():
    clients = Population(40, (Kind(PI), Kind(PHONE)), Spread(flops=0.5, downlink=0.5)).draw()
    phones = [client for client in clients if client.name.startswith("phone")]
    assert phones
    assert {(phone.flops, phone.slowdown, phone.downlink) for phone in phones} == {(None, 4.0, None)}


FILE = """
clients:
  - {name: desk, flops: 1e11}
population:
  count: 30
  seed: 5
  mixture:
    - {device: raspberry-pi-5, link: wifi-5, weight: 2}
    - {name: cam, slowdown: 8, uplink: 1e6}
  spread: {uplink: 0.5}
"""


def test_a_file_may_hold_clients_and_a_population(tmp_path):
    (tmp_path / "home.yaml").write_text(FILE)
    clients, server = load_clients(tmp_path / "home.yaml")
    assert server is None
    assert clients[0] == ClientProfile("desk", flops=1e11)
    board = ClientProfile(
        "raspberry-pi-5", 30.249e9, memory=4e9, uplink=300e6, downlink=300e6, latency=0.003, power_busy=11,
        power_idle=2.4,
    )  # fmt: skip
    cam = ClientProfile("cam", slowdown=8.0, uplink=1e6)
    assert clients[1:] == Population(30, (Kind(board, 2.0), Kind(cam)), Spread(uplink=0.5), seed=5).draw()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "count: 30",
            "size: 30",
            r"population\.size': the key is unknown\. Known keys are count, seed, mixture, spread",
        ),
        ("  count: 30\n", "", r"population\.count': the value is missing"),
        ("count: 30", "count: 0", r"'population': count=0 must be at least 1"),
        ("seed: 5", "seed: -5", r"'population': seed=-5"),
        ("seed: 5", "seed: soon", r"population\.seed'"),
        ("weight: 2", "weight: 0", r"population\.mixture\[0\]': weight=0.0 must be > 0"),
        ("weight: 2", "count: 2", r"population\.mixture\[0\]\.count': the key is unknown"),
        (
            "raspberry-pi-5",
            "raspberry-pi-9",
            r"population\.mixture\[0\]': device='raspberry-pi-9' is not in .*Known: raspb",
        ),
        ("link: wifi-5", "link: wifi-9", r"population\.mixture\[0\]': link='wifi-9' is not in .*Known: wifi-4"),
        ("slowdown: 8", "slowdown: -8", r"population\.mixture\[1\]': slowdown=-8.0 of client 'cam'"),
        ("{uplink: 0.5}", "{uplink: -0.5}", r"population\.spread': uplink=-0.5 must be >= 0"),
        ("{uplink: 0.5}", "{memory: 0.5}", r"population\.spread\.memory': the key is unknown"),
        ("{uplink: 0.5}", "0.5", r"'population\.spread': 0.5 is no mapping"),
        ("name: cam", "name: desk, weight: 1e9", None),
    ],
)
def test_a_mistake_is_an_error_with_its_place(before, after, message, tmp_path):
    assert FILE.count(before) == 1
    (tmp_path / "home.yaml").write_text(FILE.replace(before, after))
    if message is None:  # names of a population carry a number, so that they stay apart from those of the list
        assert load_clients(tmp_path / "home.yaml")[0][1].name == "desk-0"
        return
    with pytest.raises(ValueError, match=rf"home\.yaml.*{message}"):
        load_clients(tmp_path / "home.yaml")


def test_a_spread_that_touches_no_kind_is_refused():
    with pytest.raises(ValueError, match=r"spread\.flops=0.2, but no kind has `flops`"):
        Population(3, (Kind(PHONE),), Spread(flops=0.2))
    with pytest.raises(ValueError, match="mixture is empty"):
        Population(3, ())
