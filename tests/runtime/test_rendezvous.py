from __future__ import annotations

import socket
import threading

import pytest

from lightning_edgesplit.launcher import ExternalLauncher, Role
from lightning_edgesplit.runtime.rendezvous import _INTRODUCTION, Rendezvous
from lightning_edgesplit.runtime.wire import MAGIC, VERSION, Frame, Kind


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "it is no client of lightning-edgesplit"),
        (_INTRODUCTION.pack(MAGIC, VERSION + 1, 0), f"it speaks version {VERSION + 1} of the wire"),
        (_INTRODUCTION.pack(MAGIC, VERSION, 7), "it says that it is client 7, and there are 2, from 0"),
        (_INTRODUCTION.pack(MAGIC, VERSION, -1), "it says that it is client -1"),
    ],
)
def test_strangers_are_turned_away_and_who_is_silent_keeps_nobody_waiting(said, why):
    server = Rendezvous(Role(), ["one", "two"], timeout=20)
    host, _, port = server.address.rpartition(":")
    silent = socket.create_connection((host, int(port)))
    stranger = socket.create_connection((host, int(port)))
    stranger.sendall(said)
    ends = {}

    def come() -> None:
        stranger.recv(1)  # until it has been turned away
        for client in (1, 0):
            ends[client] = Rendezvous(Role(client, host, int(port)), ["one", "two"], timeout=20).link(client)

    thread = threading.Thread(target=come)
    thread.start()
    with pytest.warns(UserWarning, match=why):
        links = server.links(ExternalLauncher())
    thread.join(timeout=20)
    for client, link in enumerate(links):
        link.send(Frame(Kind.ROUND, about={"you": client}))
    assert [ends[client].receive().about["you"] for client in range(2)] == [0, 1]
    assert silent.recv(1) == b""
    for end in [server, silent, stranger, *links, *ends.values()]:
        end.close()


def test_who_comes_twice_is_turned_away():
    server = Rendezvous(Role(), ["one", "two"], timeout=20)
    host, _, port = server.address.rpartition(":")
    twice = [socket.create_connection((host, int(port))) for _ in range(2)]
    for connection in twice:
        connection.sendall(_INTRODUCTION.pack(MAGIC, VERSION, 0))

    def come() -> None:
        twice[1].recv(1)  # until it has been turned away
        other.sendall(_INTRODUCTION.pack(MAGIC, VERSION, 1))

    other = socket.create_connection((host, int(port)))
    thread = threading.Thread(target=come)
    thread.start()
    with pytest.warns(UserWarning, match="client 0 is here already"):
        links = server.links(ExternalLauncher())
    thread.join(timeout=20)
    for end in [server, other, *twice, *links]:
        end.close()
