"""What arrives on one or more links, in the order in which it comes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightning_edgesplit.errors import ClientFailedError
from lightning_edgesplit.runtime.link import Link
from lightning_edgesplit.runtime.wire import Frame, Kind

LAST = (Kind.GOODBYE, Kind.FAILED, Kind.STOP)
"""Frames after which nothing more is read from a link."""


@dataclass
class Letter:
    """A frame that arrived.

    Attributes:
        link: Index of the link that it came on.
        frame: The frame.
        arrived: When it had arrived, on this process's monotonic clock, seconds.
    """

    link: int
    frame: Frame
    arrived: float


class Inbox:
    """One receiving thread per link feeds one queue.

    Args:
        links: The links to receive from.
        names: How errors call the other ends.
        at_once: What the receiving threads themselves do with frames of some kinds; those come to nobody else.

    Attributes:
        over: Links on which nothing more comes: they broke, or the other end has said its last word.
    """

    def __init__(
        self,
        links: Sequence[Link],
        names: Sequence[str],
        at_once: Mapping[Kind, Callable[[int, Frame], None]] | None = None,
    ) -> None:
        self._links, self._names, self._at_once = links, names, dict(at_once or {})
        self.over: set[int] = set()
        self._queue: queue.SimpleQueue[tuple[int, Letter | Exception]] = queue.SimpleQueue()
        self._held: list[Letter] = []
        self._threads = [
            threading.Thread(target=self._receive, args=(k,), name=f"from {name}", daemon=True)
            for k, name in enumerate(names)
        ]
        for thread in self._threads:
            thread.start()

    def _receive(self, link: int) -> None:
        try:
            while True:
                frame = self._links[link].receive()
                if frame.kind in self._at_once:
                    self._at_once[frame.kind](link, frame)
                    continue
                self._queue.put((link, Letter(link, frame, time.monotonic())))
                if frame.kind in LAST:
                    return
        except Exception as error:  # told to the thread that waits for this link
            self._queue.put((link, error))
        finally:
            self.over.add(link)

    def next(
        self,
        *kinds: Kind,
        link: int | None = None,
        anywhere: tuple[Kind, ...] = (),
        first: Callable[[Letter], float] | None = None,
    ) -> Letter:
        """Waits for the next frame of one of these kinds; others are held back in their order.

        Args:
            kinds: What is waited for.
            link: Where it must come from; None: anywhere.
            anywhere: Kinds that are taken from any link all the same.
            first: Of those that are here, the one for which this is least is taken; None: who came first.

        Raises:
            ClientFailedError: If a client reports an exception of its own.
            ClientLostError: If a link is gone; the link's time limit ends the wait.
        """
        while True:
            while first is not None and not self._queue.empty():
                self._take(*self._queue.get())
            letter = self._pick(kinds, link, anywhere, first)
            if letter is not None:
                return letter
            self._take(*self._queue.get())

    def poll(self, *kinds: Kind) -> Letter | None:
        """The next frame of one of these kinds if one has arrived; does not wait. Raises what `next` raises."""
        while True:
            letter = self._pick(kinds)
            if letter is not None:
                return letter
            try:
                self._take(*self._queue.get_nowait())
            except queue.Empty:
                return None

    def explain(self, link: int, error: Exception) -> Exception:
        """Why a link broke: the client's own report of its failure where there is one, else `error`."""
        self._threads[link].join(timeout=5)  # it reads what is left, then ends: the link is broken
        while not self._queue.empty():
            _, got = self._queue.get()
            if isinstance(got, Letter) and got.link == link and got.frame.kind is Kind.FAILED:
                return self._failure(got)
        return error

    def join(self, timeout: float) -> None:
        """Waits for the receiving threads, which end with the last frame of each link; so many seconds at most."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _pick(
        self,
        kinds: tuple[Kind, ...],
        link: int | None = None,
        anywhere: tuple[Kind, ...] = (),
        first: Callable[[Letter], float] | None = None,
    ) -> Letter | None:
        fitting = [
            letter
            for letter in self._held
            if letter.frame.kind in anywhere or (letter.frame.kind in kinds and link in (None, letter.link))
        ]
        if not fitting:
            return None
        chosen = fitting[0] if first is None else min(fitting, key=first)
        self._held = [letter for letter in self._held if letter is not chosen]
        return chosen

    def _take(self, link: int, got: Letter | Exception) -> None:
        if isinstance(got, Exception):
            raise got
        if got.frame.kind is Kind.FAILED:
            raise self._failure(got)
        self._held.append(got)

    def _failure(self, letter: Letter) -> ClientFailedError:
        about = letter.frame.about
        return ClientFailedError(f"{self._names[letter.link]} failed: {about['error']}\n{about['traceback']}")
