"""One client's connection with the server: frames over TCP."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from weakref import WeakSet

from lightning_edgesplit.errors import ClientLostError
from lightning_edgesplit.runtime.wire import HEADER_BYTES, Frame, Kind, decode, encode, read_header

_Memory = TypeVar("_Memory", bytearray, memoryview)
_AT_ONCE = 64
"""Pieces that are handed to the kernel in one call."""
_links: WeakSet[Link] = WeakSet()


class Link:
    """Sends and receives frames.

    Args:
        connection: A connected TCP socket; it is this object's from now on.
        timeout: Seconds without a sign of life after which the other end counts as lost.
        peer: How errors call the other end.

    Attributes:
        sent: Bytes sent so far, headers included.
        received: Bytes received so far, headers included.
    """

    def __init__(self, connection: socket.socket, timeout: float, peer: str) -> None:
        self._connection, self._timeout, self._name = connection, timeout, peer
        self.sent = self.received = 0
        self._lock = threading.Lock()
        self._rest: list[bytes | memoryview] = []
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # the kernel's time limits: with Python's own the socket would not block, and could not be told to wait for all
        connection.settimeout(None)
        limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        _links.add(self)

    def send(self, frame: Frame, pace: Callable[[int], None] | None = None, wait: bool = True) -> int:
        """Sends a frame; may be called from several threads.

        Args:
            frame: What to send.
            pace: Called with the frame's bytes before it is sent; waits for as long as an emulated link would take.
            wait: Whether to return only when its memory may be used for something else: nothing may write to the
                tensors of a frame that is not waited for before the other end has answered it.

        Returns:
            The frame's bytes on the wire.

        Raises:
            ClientLostError: If the other end is gone; of a frame that was not waited for, the next one says so.
        """
        pieces = encode(frame)
        size = sum(map(len, pieces))
        if pace is not None:
            pace(size)
        with self._lock:
            try:
                self._push()
                self._rest = pieces
                self._push(0 if wait else socket.MSG_DONTWAIT)
            except OSError as error:
                raise self._lost(error) from error
            self.sent += size
            left = bool(self._rest)
        if left:
            threading.Thread(target=self._finish, name=f"sends to {self._name}", daemon=True).start()
        return size

    def _push(self, flags: int = 0) -> None:
        """Sends what is left to send; with ``MSG_DONTWAIT`` only what the kernel takes at once."""
        while self._rest:
            try:
                count = self._connection.sendmsg(self._rest[:_AT_ONCE], [], flags)
            except BlockingIOError:
                if flags:
                    return
                raise
            while self._rest and count >= len(self._rest[0]):
                count -= len(self._rest.pop(0))
            if count:
                self._rest[0] = memoryview(self._rest[0])[count:]

    def _finish(self) -> None:
        with self._lock, suppress(OSError):  # the next frame, and the thread that receives, have the same news
            self._push()

    def receive(self) -> Frame:
        """Waits for the next frame that is more than a sign of life; call it from one thread.

        Raises:
            ClientLostError: If the other end is gone, or silent for longer than `timeout`.
            ValueError: If it sends what is no frame.
        """
        while True:
            header = read_header(self._take(bytearray(HEADER_BYTES)))
            frame, large = decode(header, memoryview(self._take(bytearray(header.front))))
            for place in large:
                self._take(place)
            self.received += frame.size
            if frame.kind is not Kind.ALIVE:
                return frame

    def _take(self, place: _Memory) -> _Memory:
        """Fills this memory with what comes."""
        view = memoryview(place)
        while view:
            try:
                count = self._connection.recv_into(view, len(view), socket.MSG_WAITALL)
                if not count:
                    raise ConnectionError("the connection was closed")
            except OSError as error:
                raise self._lost(error) from error
            view = view[count:]
        return place

    def hang_up(self) -> None:
        """Says nothing more, and waits until the other end has taken in what was said, or is silent for `timeout`."""
        with suppress(OSError):  # the other end is gone
            self._connection.shutdown(socket.SHUT_WR)
            while self._connection.recv(1 << 16):
                pass
        self._connection.close()

    def close(self) -> None:
        """Ends the connection; a thread that receives from it is told so."""
        with suppress(OSError):  # the other end has ended it already
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def forget(self) -> None:
        """Gives up this process's copy of a connection that is another's."""
        self._connection.close()

    def _lost(self, error: OSError) -> ClientLostError:
        why = "nothing came" if isinstance(error, BlockingIOError) else error
        return ClientLostError(
            f"{self._name} is gone, or gave no sign of life for {self._timeout:g} s (`timeout`): {why}"
        )


def _forget_all() -> None:
    for link in list(_links):
        link.forget()


os.register_at_fork(after_in_child=_forget_all)  # a loader's worker that outlives its client would keep the link open
