from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_edgesplit.launcher import ForkLauncher, Role, choose

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
import lightning as L
from small import Deterministic, fit, vectors
from lightning_edgesplit import EdgeSplitStrategy

L.seed_everything(7)
torch.set_num_threads(1)
module = Deterministic()
strategy = EdgeSplitStrategy(clients=2, cuts=["net.0", "net.3"], launcher=sys.argv[2], timeout=60)
fit(module, vectors(48), strategy)
torch.save(module.state_dict(), sys.argv[1])
print("the server goes on after fit")
"""
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return path


@pytest.fixture(scope="module")
def forked(script):
    """Weights of the same run with forked clients."""
    run(script, script.with_name("fork.pt"), "fork")
    return torch.load(script.with_name("fork.pt"))


def run(script: Path, output: Path, launcher: str, **environment: str) -> str:
    command = [sys.executable, str(script), str(output), launcher]
    done = subprocess.run(command, env={**os.environ, **QUIET, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(180)
def test_clients_that_run_the_script_again_train_the_same_model(script, forked):
    output = script.with_name("script.pt")
    assert run(script, output, "script").count("the server goes on") == 1  # a client's script ends in `fit`
    torch.testing.assert_close(torch.load(output), forked, rtol=0, atol=0)


@pytest.mark.timeout(180)
def test_clients_started_by_hand_train_the_same_model(script, forked):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    output = script.with_name("external.pt")
    command = [sys.executable, "-m", "lightning_edgesplit.cli", "client"]
    clients = [
        subprocess.Popen(
            [*command, str(k), "--server", address, str(script), str(output), "external"], env={**os.environ, **QUIET}
        )
        for k in range(2)
    ]
    try:
        run(script, output, "external", EDGESPLIT_SERVER=address)
        assert [client.wait(30) for client in clients] == [0, 0]
    finally:
        for client in clients:
            client.kill()
    torch.testing.assert_close(torch.load(output), forked, rtol=0, atol=0)


@pytest.mark.timeout(180)
def test_torchrun_starts_server_and_clients(script, forked):
    output = script.with_name("torchrun.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", str(script), str(output), "auto"]
    done = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(output), forked, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("environment", "role"),
    [
        ({}, Role()),
        ({"EDGESPLIT_SERVER": "127.0.0.1:29500"}, Role(None, "127.0.0.1", 29500)),
        ({"EDGESPLIT_SERVER": "127.0.0.1:29500", "EDGESPLIT_CLIENT": "3"}, Role(3, "127.0.0.1", 29500)),
        (
            {"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
            Role(1, "localhost", 1),
        ),
    ],
)
def test_a_process_knows_its_role_from_its_environment(environment, role, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Role.from_environment() == role


def test_an_address_or_launcher_that_makes_no_sense_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="launcher='ssh' is unknown: use one of auto, fork, script, external"):
        choose("ssh")
    with pytest.raises(ValueError, match='launcher="external" needs the server'):
        choose("external")
    monkeypatch.setenv("EDGESPLIT_SERVER", "nowhere")
    with pytest.raises(ValueError, match="EDGESPLIT_SERVER='nowhere' must be host:port"):
        choose("auto")


def test_forked_clients_give_way_to_the_server():
    queue = multiprocessing.get_context("fork").SimpleQueue()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    launcher = ForkLauncher(1, lambda client: queue.put(os.getpriority(os.PRIO_PROCESS, 0)))
    launcher.join(timeout=20)
    assert queue.get() > before == os.getpriority(os.PRIO_PROCESS, 0)
