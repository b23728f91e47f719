"""Where clients and server find each other: one TCPStore, then one link per client."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from lightning_edgesplit.errors import ClientLostError
from lightning_edgesplit.launcher import Launcher, Role
from lightning_edgesplit.runtime.wire import Link

_POLL = 0.005  # seconds between two looks at who has come


class Rendezvous:
    """One run's meeting place.

    Args:
        role: What this process is, and where the server listens if that is given.
        names: One per client.
        timeout: Seconds to wait for a client, and for signs of life later on.
    """

    def __init__(self, role: Role, names: Sequence[str], timeout: float) -> None:
        self._names, self._timeout, self._hosted = names, timeout, role.hosted
        self._host, self._port = role.host or "127.0.0.1", role.port
        self._socket: socket.socket | None = None
        if role.client is None and not role.hosted:
            try:
                self._socket = socket.create_server((self._host, self._port), backlog=1024)
            except OSError as error:
                raise RuntimeError(
                    f"the server cannot listen on {self.address}: {error}. Choose another port in EDGESPLIT_SERVER."
                ) from error
            self._port = self._socket.getsockname()[1]

    @property
    def address(self) -> str:
        """Where the server listens, host:port."""
        return f"{self._host}:{self._port}"

    def link(self, client: int) -> Link:
        """The client's end of its link.

        Raises:
            ClientLostError: If the server is not there in time.
        """
        self.close()
        store = self._connect()
        store.set(f"here/{client}", "yes")
        return Link(store, client, on_server=False, timeout=self._timeout, peer="the server")

    def links(self, processes: Launcher) -> list[Link]:
        """The server's ends of all links.

        Args:
            processes: The clients' processes; one that has ended is not waited for.

        Raises:
            ClientLostError: If a client does not come in time; names it.
        """
        store = self._serve()
        deadline = time.monotonic() + self._timeout
        missing = list(range(len(self._names)))
        while missing:
            missing = [client for client in missing if not store.check([f"here/{client}"])]
            failed = [client for client in processes.failed() if client in missing]
            if failed:
                raise ClientLostError(
                    f"{self._names[failed[0]]} ended before it connected: its own output above says why."
                )
            if missing and time.monotonic() > deadline:
                late = ", ".join(self._names[client] for client in missing)
                raise ClientLostError(
                    f"{late} did not connect to {self.address} within {self._timeout:g} s (`timeout`): start every"
                    " client, or give a longer `timeout`."
                )
            time.sleep(_POLL)
        return [
            Link(store, client, on_server=True, timeout=self._timeout, peer=name)
            for client, name in enumerate(self._names)
        ]

    def close(self) -> None:
        """Gives the port back, where nobody was waited for; also in a forked client, whose copy it is."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _serve(self) -> Store:
        """The store, from now on; clients that came before wait at the socket.

        Only now: a store has threads, and a process forked while one of them held a lock was seen to hang.
        """
        if self._socket is None:
            return self._connect()
        handle, self._socket = self._socket.detach(), None
        return TCPStore(self._host, self._port, is_master=True, wait_for_workers=False, master_listen_fd=handle)

    def _connect(self) -> Store:
        limit = timedelta(seconds=self._timeout)
        try:
            store: Store = TCPStore(self._host, self._port, is_master=False, timeout=limit)
        except RuntimeError as error:
            raise ClientLostError(
                f"no server at {self.address} within {self._timeout:g} s (`timeout`): start it first, with the same"
                " EDGESPLIT_SERVER."
            ) from error
        return PrefixStore("edgesplit", store) if self._hosted else store
