from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from lightning_edgesplit.scheduling import ClientProfile, ServerProfile, load_clients

GOOD = """
fast: 2e8
clients:
  - {name: pi, flops: 8.0e9, memory: 1e9, uplink: "${fast}", latency: 0.01, count: 2}
  - {slowdown: 3}
server: {flops: 1e12, uplink: 1e8}
"""


def load(text: str, tmp_path):
    path = tmp_path / "clients.yaml"
    path.write_text(text)
    return load_clients(path)


def test_profiles_are_read_counted_and_named(tmp_path):
    text = GOOD.replace("fast: 2e8\n", "").replace('"${fast}"', "2e8")
    profiles, server = load(text, tmp_path)
    pi = {"flops": 8e9, "memory": 1e9, "uplink": 2e8, "latency": 0.01}
    assert profiles == [
        ClientProfile("pi-0", **pi), ClientProfile("pi-1", **pi), ClientProfile("client-2", slowdown=3.0),
    ]  # fmt: skip
    assert server == ServerProfile(flops=1e12, uplink=1e8)


def test_a_node_or_a_plain_mapping_will_do_as_well():
    data = {"clients": [{"name": "a", "uplink": 1e6}, {"name": "b", "uplink": "${clients[0].uplink}"}]}
    expected = [ClientProfile("a", uplink=1e6), ClientProfile("b", uplink=1e6)]
    assert load_clients(data) == load_clients(OmegaConf.create(data)) == (expected, None)
    assert load_clients(OmegaConf.create(data["clients"][:1]))[0] == expected[:1]


def test_devices_and_links_come_from_the_catalogue_and_single_keys_override_them(tmp_path):
    text = """
clients:
  - {device: raspberry-pi-4, link: 4g, count: 2}
  - {name: wired, device: raspberry-pi-4, link: ethernet-1g, memory: 1e9, latency: 0}
  - {name: slow, device: raspberry-pi-4, slowdown: 3}
  - {name: free, link: 4g, uplink: null}
server: {link: ethernet-100m, flops: 5e12}
"""
    profiles, server = load(text, tmp_path)
    power = {"power_busy": 7.2, "power_idle": 1.6}  # numbers of configs/catalogue, by hand
    pi = {"flops": 11.889e9, "memory": 2e9, **power}
    mobile = {"uplink": 6.3e6, "downlink": 21.3e6, "latency": 0.0276}
    assert profiles == [
        ClientProfile("raspberry-pi-4-0", **pi, **mobile),
        ClientProfile("raspberry-pi-4-1", **pi, **mobile),
        ClientProfile("wired", flops=11.889e9, memory=1e9, uplink=1e9 * 0.9493, downlink=1e9 * 0.9493, **power),
        ClientProfile("slow", slowdown=3.0, memory=2e9, **power),
        ClientProfile("free", uplink=None, downlink=21.3e6, latency=0.0276),
    ]
    assert server == ServerProfile(flops=5e12, uplink=1e8 * 0.9493, downlink=1e8 * 0.9493)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clients: [{name: a, upload: 3}]", r"clients\[0\].upload.*Known keys are"),
        ("clients: [{name: a, uplink: fast}]", r"clients\[0\].uplink"),
        ("clients:\n- name: a\n  flops: ???", r"clients\[0\].flops': the value is missing"),
        ("clients: [{name: a, flops: -1}]", r"clients\[0\].*flops=-1.0 of client 'a' must be > 0"),
        ("clients: [{name: a, uplink: 0}]", r"clients\[0\].*uplink=0.0"),
        ("clients: [{name: a, memory: .nan}]", r"clients\[0\].*memory=nan"),
        ("clients: [{name: a, count: 0}]", r"clients\[0\].count': 0"),
        ("clients: [{name: a}, {name: a}]", "'a' comes twice"),
        ("clients: [{name: a, flops: 1, slowdown: 1}]", "exclude each other"),
        ("clients: []", "missing or empty"),
        ("clients: [{name: a}]\nserver: {flops: 0}", "'server': flops=0.0"),
        ("devices: [{name: a}]", "devices.*Known keys"),
        ("clients: [a]", r"clients\[0\]': 'a' is no mapping"),
        ("clients: [{", "cannot be read"),
        ("clients: [{device: pi}]", r"clients\[0\]': device='pi' is not in the catalogue. Known: raspberry-pi-3b, "),
        ("clients: [{link: wifi}]", r"clients\[0\]': link='wifi' is not in the catalogue. Known: wifi-4, "),
        ("clients: [{device: desktop, flops: 1, slowdown: 2}]", r"clients\[0\]': flops=1.0 and slowdown=2.0"),
        ("clients: [{device: desktop}, {device: desktop}]", "'desktop' comes twice"),
        ("clients: [a]\nserver: {device: t4}", r"clients\[0\]'"),
        ("clients: [{name: a}]\nserver: {device: t4}", "'server': device='t4' is not in the catalogue"),
        ("server: {flops: 1}", "missing or empty.*or give `population:`"),
    ],
)
def test_a_mistake_is_an_error_with_its_place(text, message, tmp_path):
    with pytest.raises(ValueError, match=f"(?s)clients.yaml.*{message}"):
        load(text, tmp_path)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_clients("nowhere.yaml")
