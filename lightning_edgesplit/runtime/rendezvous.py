"""Where clients and server find each other: each client connects to the server, and says which one it is."""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Sequence
from datetime import timedelta

from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from lightning_edgesplit.errors import ClientLostError
from lightning_edgesplit.launcher import Launcher, Role
from lightning_edgesplit.runtime.link import Link
from lightning_edgesplit.runtime.wire import MAGIC, VERSION

_POLL = 0.05  # seconds between two looks at processes that may have failed, or for a server that is not there yet
_PORT = "edgesplit/port"
_INTRODUCTION = struct.Struct("<IIq")  # magic, version of the wire, number of the client


class Rendezvous:
    """One run's meeting place.

    Args:
        role: What this process is, and where the server listens if that is given.
        names: One per client.
        timeout: Seconds to wait for a client, and for signs of life later on.

    Raises:
        RuntimeError: If the server cannot listen there.
    """

    def __init__(self, role: Role, names: Sequence[str], timeout: float) -> None:
        self._names, self._timeout = names, timeout
        self._host, self._port = role.host or "127.0.0.1", role.port
        self._store = (self._host, self._port) if role.hosted else None
        self._socket: socket.socket | None = None
        if role.client is None:
            try:
                self._socket = socket.create_server((self._host, 0 if role.hosted else self._port), backlog=1024)
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
        deadline = time.monotonic() + self._timeout
        try:
            if self._store is not None:
                self._port = int(self._agent().get(_PORT))
            while True:
                left = deadline - time.monotonic()
                try:
                    connection = socket.create_connection((self._host, self._port), timeout=max(_POLL, left))
                    break
                except ConnectionRefusedError:
                    if left <= 0:
                        raise
                    time.sleep(_POLL)
            connection.sendall(_INTRODUCTION.pack(MAGIC, VERSION, client))
        except (OSError, RuntimeError) as error:
            raise ClientLostError(
                f"no server at {self.address} within {self._timeout:g} s (`timeout`): start it first, with the same"
                f" EDGESPLIT_SERVER ({error})."
            ) from error
        return Link(connection, self._timeout, "the server")

    def links(self, processes: Launcher) -> list[Link]:
        """The server's ends of all links.

        Args:
            processes: The clients' processes; one that has ended is not waited for.

        Raises:
            ClientLostError: If a client does not come in time; names it.
        """
        assert self._socket is not None
        if self._store is not None:
            self._agent().set(_PORT, str(self._port))
        door = _Door(self._socket, len(self._names))
        deadline = time.monotonic() + self._timeout
        try:
            while missing := door.missing:
                failed = [client for client in processes.failed() if client in missing]
                if failed:
                    raise ClientLostError(
                        f"{self._names[failed[0]]} ended before it connected: its own output above says why."
                    )
                if time.monotonic() > deadline:
                    late = ", ".join(self._names[client] for client in missing)
                    raise ClientLostError(
                        f"{late} did not connect to {self.address} within {self._timeout:g} s (`timeout`): start every"
                        " client, or give a longer `timeout`."
                    )
                door.wait(_POLL)
        except BaseException:
            door.close(turn_away=True)
            raise
        door.close()
        return [Link(door.came[client], self._timeout, name) for client, name in enumerate(self._names)]

    def close(self) -> None:
        """Gives the port back; also in a forked client, whose copy it is."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _agent(self) -> TCPStore:
        """The store of torchrun's agent."""
        assert self._store is not None
        return TCPStore(*self._store, is_master=False, timeout=timedelta(seconds=self._timeout))


class _Door:
    """Lets clients in by what they say of themselves. Nobody who says nothing keeps others waiting.

    Args:
        listener: Where they come.
        clients: How many are expected.

    Attributes:
        came: The connection of each client that has come.
    """

    def __init__(self, listener: socket.socket, clients: int) -> None:
        self.came: dict[int, socket.socket] = {}
        self._clients, self._said = clients, dict[socket.socket, bytes]()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._listener = listener
        listener.setblocking(False)

    @property
    def missing(self) -> list[int]:
        """The clients that have not come."""
        return [client for client in range(self._clients) if client not in self.came]

    def wait(self, seconds: float) -> None:
        """Waits for whoever comes or says something, so long at most."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._greet()
            else:
                assert isinstance(key.fileobj, socket.socket)
                self._listen(key.fileobj)

    def close(self, turn_away: bool = False) -> None:
        """Turns away who has said nothing yet, and on request the others too."""
        self._selector.close()
        for connection in [*self._said, *(self.came.values() if turn_away else ())]:
            connection.close()

    def _greet(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone again
            return
        connection.setblocking(False)
        self._said[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ)

    def _listen(self, connection: socket.socket) -> None:
        try:
            more = connection.recv(_INTRODUCTION.size - len(self._said[connection]))
        except OSError:
            more = b""
        said = self._said[connection] = self._said[connection] + more
        if more and len(said) < _INTRODUCTION.size:
            return
        self._selector.unregister(connection)
        del self._said[connection]
        why = self._refusal(said)
        if why is None:
            self.came[_INTRODUCTION.unpack(said)[2]] = connection
        else:
            connection.close()
            rank_zero_warn(f"somebody who connected was turned away: {why}.")

    def _refusal(self, said: bytes) -> str | None:
        if len(said) < _INTRODUCTION.size:
            return "it did not say who it is"
        magic, version, client = _INTRODUCTION.unpack(said)
        if magic != MAGIC:
            return "it is no client of lightning-edgesplit"
        if version != VERSION:
            return f"it speaks version {version} of the wire, and the server speaks {VERSION}: install the same version"
        if not 0 <= client < self._clients:
            return f"it says that it is client {client}, and there are {self._clients}, from 0"
        return f"client {client} is here already" if client in self.came else None
