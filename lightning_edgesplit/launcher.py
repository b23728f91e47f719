"""How client processes come to life, and that none outlives the run.

- ``fork``: this process is copied when everything is set up; fast, and data are shared until somebody writes to them.
- ``script``: the script is run again for each client, as Lightning's DDP does; where forking is not safe.
- ``external``: somebody else starts them, with ``edgesplit client`` or ``torchrun``.

A process that is a client knows it from its environment (`Role.from_environment`).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from lightning_edgesplit.memory import keep_freed

CLIENT, SERVER = "EDGESPLIT_CLIENT", "EDGESPLIT_SERVER"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Role:
    """What this process is to be, by its environment.

    Attributes:
        client: Index of the client; None: this is the server.
        host: Where the server listens, if the environment says so.
        port: The same.
        hosted: Whether somebody else (torchrun's agent) already serves a TCPStore there.
    """

    client: int | None = None
    host: str | None = None
    port: int = 0
    hosted: bool = False

    @classmethod
    def from_environment(cls) -> Role:
        """Reads ``EDGESPLIT_CLIENT`` and ``EDGESPLIT_SERVER`` (host:port); else torchrun's variables.

        Under torchrun, rank 0 is the server and rank k is client k - 1.

        Raises:
            ValueError: If a variable makes no sense.
        """
        client, server = os.environ.get(CLIENT), os.environ.get(SERVER)
        if client is not None and server is None:
            raise ValueError(f"{CLIENT}={client} without {SERVER}: give the server's host:port as well.")
        if server is not None:
            host, _, digits = server.rpartition(":")
            if not host or not digits.isdigit():
                raise ValueError(f"{SERVER}={server!r} must be host:port, such as 127.0.0.1:29500.")
            if client is not None and not client.isdigit():
                raise ValueError(f"{CLIENT}={client!r} must be the number of a client, from 0.")
            return cls(None if client is None else int(client), host, int(digits))
        if "TORCHELASTIC_RUN_ID" in os.environ:
            rank, hosted = int(os.environ["RANK"]), os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            port = int(os.environ["MASTER_PORT"])
            return cls(rank - 1 if rank else None, os.environ["MASTER_ADDR"], port, hosted)
        return cls()


class Launcher(Protocol):
    """The client processes that this process has started."""

    def failed(self) -> list[int]:
        """Indices of clients whose process has ended with an error."""
        ...

    def join(self, timeout: float) -> None:
        """Waits for the clients to end, then ends those that did not."""
        ...

    def kill(self) -> None:
        """Ends every client now, and the processes that it started."""
        ...


def choose(launcher: str) -> str:
    """Makes up its mind about ``"auto"``.

    That is ``external`` where the environment gives the server's address, else ``fork`` where that is safe, else
    ``script``.

    Raises:
        ValueError: If the name is unknown, or the way does not work here.
    """
    names = ("auto", "fork", "script", "external")
    if launcher not in names:
        raise ValueError(f"launcher={launcher!r} is unknown: use one of {', '.join(names)}.")
    address = Role.from_environment().host
    if launcher == "external" and address is None:
        raise ValueError(f'launcher="external" needs the server\'s address: set {SERVER}=host:port, or use torchrun.')
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if launcher == "fork" and not can_fork:
        raise ValueError('launcher="fork" does not work on this platform: use launcher="script".')
    if launcher == "fork" and cuda:
        raise ValueError('launcher="fork" does not work once CUDA is in use: use launcher="script".')
    if launcher != "auto":
        return launcher
    if address is not None:
        return "external"
    return "fork" if can_fork and not cuda else "script"


def behave_as_client() -> None:
    """What every client process on this host does first: dies with its server, ignores Ctrl-C, one torch thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    keep_freed()
    torch.set_num_threads(1)  # more would hang after a fork: OpenMP's threads do not survive it


NICE = 10
"""By so much forked clients give way to the server, for which all of them wait: with four clients on two cores that was
1.05 times the samples/s (ResNet-18, measured)."""


class ForkLauncher:
    """Forks one process per client, late: data and model are shared until somebody writes to them.

    Args:
        clients: How many.
        main: What client k runs; called with k in the new process, with one torch thread.
    """

    def __init__(self, clients: int, main: Callable[[int], None]) -> None:
        context = multiprocessing.get_context("fork")
        # no daemons: those could not have workers for their DataLoader
        self._processes = [
            context.Process(target=self._child, args=(main, k), name=f"client {k}") for k in range(clients)
        ]
        atexit.register(self.kill)
        # Garbage must not be collected in a child: destructors may wait there for threads that a fork does not take
        # along, and collecting would copy the pages that are shared.
        gc.freeze()
        try:
            for process in self._processes:
                process.start()
        finally:
            gc.unfreeze()

    @staticmethod
    def _child(main: Callable[[int], None], client: int) -> None:
        os.setpgid(0, 0)  # a group of its own, so that its workers end with it
        os.nice(NICE)
        behave_as_client()
        code = 1
        try:
            main(client)
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # nothing inherited is torn down here: it may wait for threads that were not forked
            os._exit(code)

    def failed(self) -> list[int]:
        """See `Launcher.failed`."""
        return [k for k, process in enumerate(self._processes) if process.exitcode]

    def join(self, timeout: float) -> None:
        """See `Launcher.join`."""
        for process in self._processes:
            process.join(timeout)
        self.kill()

    def kill(self) -> None:
        """See `Launcher.kill`."""
        atexit.unregister(self.kill)
        for process in self._processes:
            if process.pid is not None:
                _kill_group(process.pid)
                process.kill()
                process.join()


class ScriptLauncher:
    """Runs the user's script again, once per client; it becomes a client where it calls ``fit``.

    Args:
        clients: How many.
        server: Address of the server, host:port.

    Raises:
        RuntimeError: If there is no script, as in a notebook, or this is not its first ``fit``.
    """

    _used = False

    def __init__(self, clients: int, server: str) -> None:
        command = _own_command()
        if ScriptLauncher._used:
            raise RuntimeError(
                'launcher="script" works for one `fit` in a script, since its clients begin at the top and end in the'
                ' first: use launcher="fork", or a script for each.'
            )
        ScriptLauncher._used = True
        self._processes = [
            subprocess.Popen(  # the user's own command
                command, env={**os.environ, CLIENT: str(k), SERVER: server}, start_new_session=True
            )
            for k in range(clients)
        ]
        atexit.register(self.kill)

    def failed(self) -> list[int]:
        """See `Launcher.failed`."""
        return [k for k, process in enumerate(self._processes) if process.poll()]

    def join(self, timeout: float) -> None:
        """See `Launcher.join`."""
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):  # ended below
                process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """See `Launcher.kill`."""
        atexit.unregister(self.kill)
        for process in self._processes:
            _kill_group(process.pid)
            process.wait()


class ExternalLauncher:
    """Somebody else starts the clients, and ends them."""

    def failed(self) -> list[int]:
        """See `Launcher.failed`; not known here."""
        return []

    def join(self, timeout: float) -> None:
        """See `Launcher.join`; they have said goodbye."""

    def kill(self) -> None:
        """See `Launcher.kill`; they end when their link does."""


def launch(launcher: str, clients: int, main: Callable[[int], None], server: str) -> Launcher:
    """Starts the clients, or leaves that to somebody else.

    Args:
        launcher: ``"fork"``, ``"script"`` or ``"external"``.
        clients: How many.
        main: What client k runs, where it is forked.
        server: Address of the server, host:port, for those that are not.
    """
    if launcher == "fork":
        return ForkLauncher(clients, main)
    return ScriptLauncher(clients, server) if launcher == "script" else ExternalLauncher()


def _own_command() -> list[str]:
    """The command that this process was started with."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return [sys.executable, "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    if not hasattr(main, "__file__"):
        raise RuntimeError('launcher="script" runs your script again, and there is none here: use launcher="fork".')
    return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or has no group of its own yet
        os.killpg(pid, signal.SIGKILL)
