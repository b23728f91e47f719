from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import profiles_page
import pytest
from omegaconf import OmegaConf

from lightning_edgesplit.scheduling import ClientProfile, ServerProfile, catalogue, load_clients
from lightning_edgesplit.scheduling.catalogue import Device, Link, device, link
from lightning_edgesplit.scheduling.measured import load_layer_times
from lightning_edgesplit.scheduling.trace import Conditions, Trace

CONFIGS = Path(__file__).parents[2] / "configs"


def test_flops_and_memory_are_fractions_of_what_is_built_in():
    nano = device("jetson-nano")  # numbers of the file, by hand
    assert nano.flops == pytest.approx(0.33 * 236e9)
    assert nano.memory == pytest.approx(0.5 * 4e9)
    assert nano.power_busy == 10
    assert nano.power_idle is None  # unknown is not 0
    pi = device("raspberry-pi-4")
    assert pi.flops == 11.889e9
    assert (pi.power_busy, pi.power_idle) == (7.2, 1.6)


def test_rates_are_the_measured_ones_or_fractions_of_the_peaks():
    wired, mobile = link("ethernet-100m"), link("4g")
    assert wired.uplink == wired.downlink == pytest.approx(100e6 * 1460 / 1538, rel=1e-4)
    assert (mobile.uplink, mobile.downlink, mobile.latency) == (6.3e6, 21.3e6, 0.0276)
    mixed = Link(sustained_uplink=3.0, peak_downlink=8.0, efficiency=0.25, latency=0.0)
    assert (mixed.uplink, mixed.downlink) == (3.0, 2.0)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"device='raspberry-pi-6' is not in the catalogue\. Known: .*raspberry-pi-5, "
    ):
        device("raspberry-pi-6")
    with pytest.raises(ValueError, match=r"link='wifi' is not in the catalogue\. Known: wifi-4, wifi-5, "):
        link("wifi")


GOOD = {"peak": 8.0, "efficiency": 0.5, "ram": 4.0, "ram_share": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sustained": 3.0}, "peak=8.0 and sustained=3.0: give one"),
        ({"peak": None, "efficiency": None}, "peak=None and sustained=None: give one"),
        ({"efficiency": None}, "efficiency=None with peak=8.0"),
        ({"peak": None, "sustained": 8.0}, "efficiency=0.5 with peak=None"),
        ({"efficiency": 1.5}, "efficiency=1.5 must be a fraction"),
        ({"ram": None}, "ram is missing"),
        ({"ram_share": 0.0}, "ram_share=0.0 must be a fraction"),
        ({"peak": float("nan")}, "peak=nan"),
        ({"power_idle": 0.0}, "power_idle=0.0 must be > 0 and finite: leave it out where it is unknown"),
        ({"power_busy": 1.0, "power_idle": 2.0}, "power_idle=2.0 exceeds power_busy=1.0"),
    ],
)
def test_a_device_that_cannot_be_is_refused(change, message):
    Device(**GOOD)
    with pytest.raises(ValueError, match=message):
        replace(Device(**GOOD), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sustained_uplink": 3.0}, "peak_uplink=8.0 and sustained_uplink=3.0"),
        ({"sustained_downlink": None}, "peak_downlink=None and sustained_downlink=None"),
        ({"efficiency": None}, "efficiency=None: it goes with peak rates"),
        ({"peak_uplink": None, "sustained_uplink": 8.0}, "efficiency=0.5: it goes with peak rates"),
        ({"sustained_downlink": -1.0}, "sustained_downlink=-1.0 must be > 0"),
        ({"latency": None}, "latency=None"),
        ({"latency": -0.1}, "latency=-0.1 must be >= 0"),
    ],
)
def test_a_link_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Link(peak_uplink=8.0, sustained_downlink=4.0, efficiency=0.5, latency=0.0), **change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pi: {peek: 3}", r"'pi\.peek': the key is unknown\. Known keys are peak, sustained"),
        ("pi: {peak: fast}", r"'pi\.peak'"),
        ("pi: {sustained: 3, ram: 1, ram_share: 2}", r"'pi': ram_share=2.0 must be a fraction"),
        ("pi: 3", "'pi': 3 is no mapping"),
        ("- pi", "holds no entries"),
    ],
)
def test_a_mistake_in_a_catalogue_is_an_error_with_its_place(text, message, tmp_path):
    (tmp_path / "devices.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"devices\.yaml.*{message}"):
        catalogue.load_entries(Device, tmp_path / "devices.yaml")


def test_every_file_of_configs_loads():
    wanted = {
        "raspberry-pi-3b", "raspberry-pi-4", "raspberry-pi-5", "jetson-nano", "jetson-tx2", "jetson-xavier-nx",
        "jetson-orin-nano", "phone-low", "phone-middle", "phone-high", "desktop",
    }  # fmt: skip
    assert wanted < set(catalogue.devices())
    assert {"wifi-4", "wifi-5", "wifi-6", "4g", "5g", "home-broadband", "ethernet-1g", "nb-iot", "lora"} < set(
        catalogue.links()
    )
    seen = 0
    for path in sorted(CONFIGS.rglob("*.yaml")):
        kind = path.parent.name
        if kind == "catalogue":
            entries = catalogue.load_entries(Device if path.stem == "devices" else Link, path)
            assert set(entries) == set(OmegaConf.load(path))
        elif kind in ("clients", "populations"):
            assert load_clients(path)[0]
        else:
            assert OmegaConf.load(path)
        seen += 1
    assert seen >= 11


@pytest.mark.parametrize("path", sorted((CONFIGS / "catalogue").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_value_has_a_source_or_is_called_an_estimate(path):
    values = [line for line in path.read_text().splitlines() if re.match(r"  \w+: ", line)]
    assert len(values) > 30
    source = r"\w\.\w+/|\b\w+\.(com|es)\b|\b(page|table|range)\b|\bas [a-z]+-[\w-]+|estimate|Kottkamp|standard"
    for line in values:
        value, _, comment = line.partition("  # ")
        assert re.fullmatch(r"  \w+: [0-9.e]+", value), line
        assert re.search(source, comment), line
        if "power" in value or "peak" in value or "sustained" in value or "ram:" in value:
            assert re.search(r"FLOP/s|bytes|\bW\b|bit/s|estimate", comment), line  # the unit


def test_the_page_has_the_catalogue_as_it_is():
    text = profiles_page.PAGE.read_text()
    assert text == profiles_page.page(text), "run `python tests/scheduling/profiles_page.py`"
    assert "| `raspberry-pi-4` | 11.9 | measured | 2 | 7.2 | 1.6 |" in text
    assert "| `ethernet-100m` | 94.9 | 94.9 | 0.9493 × peak | 0.5 |" in text


def test_the_examples_of_the_page_work(tmp_path):
    blocks = re.findall(r"```(yaml|csv)\n(.*?)```", profiles_page.PAGE.read_text(), flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["yaml", "yaml", "csv", "csv", "yaml"]
    by_name, population, trace, times, measured = (text for _, text in blocks)
    (tmp_path / "pi.csv").write_text(times)
    (tmp_path / "trace.csv").write_text(trace)
    for name, text in (("a", by_name), ("b", population), ("c", measured)):
        (tmp_path / f"{name}.yaml").write_text(text)

    clients, server = load_clients(tmp_path / "a.yaml")
    wifi, nano = link("wifi-5"), device("jetson-nano")
    assert [client.name for client in clients] == [
        "raspberry-pi-4-0",
        "raspberry-pi-4-1",
        "desk",
        "jetson-nano",
        "camera",
    ]
    assert clients[3] == ClientProfile(
        "jetson-nano", nano.flops, memory=nano.memory, uplink=50e6, downlink=wifi.downlink, latency=wifi.latency,
        power_busy=10,
    )  # fmt: skip
    assert clients[4] == ClientProfile("camera", slowdown=6.0, memory=0.5e9, power_busy=3.7, power_idle=1.4)
    assert server == ServerProfile(0.33 * 8.1e12, link("ethernet-1g").uplink, link("ethernet-1g").downlink)
    assert len(load_clients(tmp_path / "b.yaml")[0]) == 100
    assert load_clients(tmp_path / "c.yaml")[0][0].times == load_layer_times(tmp_path / "pi.csv")
    names = {row["client"] for row in csv.DictReader(io.StringIO(trace))}
    shown = Trace.load(tmp_path / "trace.csv", sorted(names))
    assert shown.at("phone-0", 75.0) == Conditions(uplink=2e6, downlink=10e6, slowdown=1.0, available=True)
    assert shown.next_change("phone-0", 0.0) == 60.0
