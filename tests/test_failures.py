from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small import Classifier, fit, vectors

from lightning_edgesplit import ClientFailedError, ClientLostError, EdgeSplitStrategy
from lightning_edgesplit.launcher import Role
from lightning_edgesplit.runtime.rendezvous import Rendezvous


class Failing(Classifier):
    def on_train_start(self):
        self.on_server = True

    def training_step(self, batch, batch_idx):
        if batch_idx == 1 and getattr(self, "on_server", False) == self.fails_on_server:
            raise RuntimeError("deliberate")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("on_server", "error"), [(False, ClientFailedError), (True, RuntimeError)])
def test_an_exception_on_either_side_is_raised_and_the_last_aggregate_kept(on_server, error):
    module = Failing()
    module.fails_on_server = on_server
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=r"deliberate" if on_server else r"client-\d failed: RuntimeError: deliberate"):
        fit(module, vectors(64), EdgeSplitStrategy(clients=2, cuts="net.2", timeout=30))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes on exceptions came with Python 3.11")
def test_an_exception_on_the_server_says_whose_step_it_was():
    module = Failing()
    module.fails_on_server = True
    with pytest.raises(RuntimeError, match="deliberate") as caught:
        fit(module, vectors(64), EdgeSplitStrategy(clients=2, cuts="net.2", timeout=30))
    assert any(name in note for note in caught.value.__notes__ for name in ("client-0", "client-1"))


class Dying(Classifier):
    def training_step(self, batch, batch_idx):
        if os.environ.get("EDGESPLIT_CLIENT") == "1" and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


def test_a_client_that_dies_is_named_and_the_last_aggregate_kept():
    module = Dying()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ClientLostError, match="client-1 is gone"):
        fit(module, vectors(64), EdgeSplitStrategy(clients=2, cuts="net.2", timeout=10))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


class Silent(Classifier):
    """Stops its client process altogether, so that not even signs of life come."""

    def training_step(self, batch, batch_idx):
        if os.environ.get("EDGESPLIT_CLIENT") == "0" and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().training_step(batch, batch_idx)


def test_a_client_that_falls_silent_counts_as_lost_after_the_time_limit():
    with pytest.raises(ClientLostError, match=r"client-0 is gone, or gave no sign of life for 2 s"):
        fit(Silent(), vectors(64), EdgeSplitStrategy(clients=2, cuts="net.2", timeout=2))


def test_clients_that_never_connect_are_named(monkeypatch):
    monkeypatch.setenv("EDGESPLIT_SERVER", f"127.0.0.1:{free_port()}")
    with pytest.raises(ClientLostError, match=r"client-0, client-1 did not connect to 127.* within 1 s"):
        fit(Classifier(), vectors(64), EdgeSplitStrategy(clients=2, cuts="net.2", timeout=1))


def test_a_client_without_a_server_gives_up_and_says_where_it_looked(monkeypatch):
    port = free_port()
    rendezvous = Rendezvous(Role(client=0, host="127.0.0.1", port=port), ["client-0"], timeout=1)
    with pytest.raises(ClientLostError, match=f"no server at 127.0.0.1:{port} within 1 s"):
        rendezvous.link(0)


SCRIPT = """
import os, signal, sys, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
sys.path.insert(0, {tests!r})
from small import Classifier, fit, vectors
from lightning_edgesplit import EdgeSplitStrategy

class Slow(Classifier):
    def on_train_batch_end(self, *_):
        if self.global_step == 10:  # in the third epoch
            torch.save(self.state_dict(), sys.argv[1])
            print("now", flush=True)

module = Slow()
try:
    fit(module, vectors(64), EdgeSplitStrategy(clients=2, cuts="net.3", timeout=30), epochs=100_000)
finally:
    torch.save(module.state_dict(), sys.argv[2])
"""


@pytest.mark.timeout(90)
def test_ctrl_c_ends_all_processes_and_keeps_the_last_aggregate(tmp_path):
    script, marker = tmp_path / "train.py", f"test-{os.getpid()}-{time.monotonic_ns()}"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "then.pt"), str(tmp_path / "after.pt")],
        env={**os.environ, "MARKER": marker, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("now") for line in process.stdout)
            os.killpg(process.pid, signal.SIGINT)
            output = process.stdout.read()
        finally:
            process.kill()
    assert process.returncode == 1, output
    assert "Detected KeyboardInterrupt" in output
    assert "Traceback" not in output
    after = torch.load(tmp_path / "after.pt")
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert any(not torch.equal(after[name], tensor) for name, tensor in Classifier().state_dict().items())
    deadline = time.monotonic() + 10
    while left := processes_with(marker):
        assert time.monotonic() < deadline, f"processes left: {left}"


def processes_with(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has ended meanwhile
            continue
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
