"""How client processes come to life, and that none outlives the run."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable

import torch

_PR_SET_PDEATHSIG = 1


class ForkLauncher:
    """Forks one process per client, late: data and model are shared until somebody writes to them.

    Args:
        clients: How many.
        main: What client k runs; called with k in the new process, with one torch thread.
    """

    def __init__(self, clients: int, main: Callable[[int], None]) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise RuntimeError("clients are forked, which this platform cannot do: run on Linux.")
        context = multiprocessing.get_context("fork")
        self._processes = [
            context.Process(target=self._child, args=(main, k), name=f"client {k}", daemon=True) for k in range(clients)
        ]
        for process in self._processes:
            process.start()

    @staticmethod
    def _child(main: Callable[[int], None], client: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # dies with its server
        torch.set_num_threads(1)  # more would hang: OpenMP's threads do not survive a fork
        code = 1
        try:
            main(client)
            code = 0
        finally:
            # nothing inherited is torn down here: the server's TCPStore would wait for a thread that was not forked
            os._exit(code)

    def join(self, timeout: float) -> None:
        """Waits for the clients to end, then ends those that did not."""
        for process in self._processes:
            process.join(timeout)
        self.kill()

    def kill(self) -> None:
        """Ends every client now."""
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
