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
    ],
)
def test_a_mistake_is_an_error_with_its_place(text, message, tmp_path):
    with pytest.raises(ValueError, match=f"(?s)clients.yaml.*{message}"):
        load(text, tmp_path)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_clients("nowhere.yaml")
