"""The server of clients that share processes: who is played where, and the mean of those that have been."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lightning_edgesplit.errors import ClientFailedError, ClientLostError
from lightning_edgesplit.runtime import states
from lightning_edgesplit.runtime.aggregation import MeanOfModels
from lightning_edgesplit.runtime.inbox import Inbox, Letter
from lightning_edgesplit.runtime.link import Link
from lightning_edgesplit.runtime.seat import Seat
from lightning_edgesplit.runtime.server import Server, Start
from lightning_edgesplit.runtime.wire import Frame, Kind

AHEAD = 4
"""Clients that may begin, per process, before the first that is not done: so many finished models wait for their turn
in the sum at most, which keeps their order, and clients with unequal data still keep all processes at work."""


class SharedInbox(Inbox):
    """Calls what comes on a process's link by the client that the process plays.

    Attributes:
        playing: The client that each process plays; None: none.
    """

    def __init__(self, links: Sequence[Link], clients: Sequence[str]) -> None:
        self.playing: list[int | None] = [None] * len(links)
        self._clients = clients
        super().__init__(links, [f"process {k}" for k in range(len(links))])

    def _take(self, link: int, got: Letter | Exception) -> None:
        client = self.playing[link]
        if isinstance(got, ClientLostError):
            raise self._named(link, got) from got
        if isinstance(got, Letter) and got.frame.kind is not Kind.FAILED and client is not None:
            got = replace(got, link=client)
        super()._take(link, got)

    def explain(self, link: int, error: Exception) -> Exception:
        """See `Inbox.explain`; names the client as well as the process."""
        why = super().explain(link, error)
        return self._named(link, error) if why is error else why

    def _named(self, link: int, error: Exception) -> Exception:
        return error if self.playing[link] is None else ClientLostError(f"{self._name(link)} is lost: {error}")

    def _failure(self, letter: Letter) -> ClientFailedError:
        about = letter.frame.about
        return ClientFailedError(f"{self._name(letter.link)} failed: {about['error']}\n{about['traceback']}")

    def _name(self, link: int) -> str:
        client = self.playing[link]
        return self._names[link] if client is None else f"{self._clients[client]} (in {self._names[link]})"


class CarryingServer(Server):
    """Serves clients of which only a few run at a time: a process plays one for its whole round, then the next.

    The clients of a round are played in the order of their numbers, by whoever is free. What a client leaves is held
    here until it is played again, by any process: where it is in its data and its random streams, and its optimizer's
    state if that is kept. Its model is added to the sum of the round and forgotten.

    Where arrivals are served in a fixed order, it goes by waves: as many clients as there are processes take their
    local steps in turn, then the next ones.

    Attributes:
        finished: Sum of the models of clients that are done with the round, in the order of their numbers.
        finished_states: Sum of their optimizer states, where those are averaged.
        letters: What they sent last, without the model.
        borrowed: Clients whose optimizer state is also others' until they are played.
    """

    streams_uploads = True
    inbox: SharedInbox

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._queue: deque[int] = deque()
        self._unsummed: deque[int] = deque()
        self._waiting: dict[int, tuple[dict[str, Tensor], states.State, int]] = {}
        self._told: dict[int, Any] = {}
        self._positions: dict[int, dict[str, Any]] = {}
        self._start: Start | None = None
        self.letters: dict[int, Letter] = {}
        self.borrowed: set[int] = set()
        super().__init__(*arguments, **options)
        self.finished, self.finished_states = MeanOfModels(()), states.MeanOfStates()

    def _take_seats(self, names: Sequence[str]) -> list[Seat]:
        return [Seat(name, self.links[k % len(self.links)]) for k, name in enumerate(names)]

    def _open_inbox(self, names: Sequence[str]) -> Inbox:
        return SharedInbox(self.links, names)

    def _hear_greetings(self) -> list[dict[str, Any]]:
        heard: dict[int, dict[str, Any]] = {}
        for greeting in super()._hear_greetings():
            heard.update(greeting["clients"])
        return [heard[client] for client in range(len(self.seats))]

    def _link_of(self, client: int) -> int:
        return self.inbox.playing.index(client)

    # ---- who is played where -----------------------------------------------------------------------------------------

    @property
    def playing(self) -> list[int]:
        """The clients that are played now, in the order of their numbers."""
        return sorted(client for client in self.inbox.playing if client is not None)

    def _in_turn(self, clients: Sequence[int]) -> list[int]:
        at_once = len(self.links)
        waves = [clients[at : at + at_once] for at in range(0, len(clients), at_once)]
        return [client for wave in waves for client in super(CarryingServer, self)._in_turn(wave)]

    def _start_clients(self, clients: Sequence[int], start: Start) -> None:
        self._queue, self._unsummed, self._start = deque(clients), deque(clients), start
        self._waiting, self.letters = {}, {}
        self.finished, self.finished_states = MeanOfModels(self.sides.names), states.MeanOfStates()
        self._play_next()

    def _play_next(self) -> None:
        """Lets every process that is free play the next client."""
        done = len(self.taking_part) - len(self._unsummed)
        for link, playing in enumerate(self.inbox.playing):
            begun = len(self.taking_part) - len(self._queue)
            if playing is None and self._queue and begun - done < AHEAD * len(self.links):
                self._play(link, self._queue.popleft())

    def _play(self, link: int, client: int) -> None:
        assert self._start is not None
        seat, start = self.seats[client], self._start
        self.inbox.playing[link] = client
        seat.link, seat.began = self.links[link], time.monotonic()
        seat.trained = self._told.get(link)
        carried, seat.holds = self._carried_bytes(seat), ()  # the process has no state of this client
        if client in self.borrowed and start.fresh_state is None:
            own = states.copy(self.state_behind(client))
            seat.state = defaultdict(dict, {self.sides.parameters[name]: entries for name, entries in own.items()})
        self.borrowed.discard(client)
        held = self.held(client)
        self._positions.pop(client, None)
        position = held["position"]
        if position is not None and seat.epoch != start.about["epoch"]:
            position = {**position, "taken": None}  # its next pass over the data begins anew
        self.send(client, Frame(Kind.RESTORE, held["tensors"], {"client": client, "position": position}))
        self._start_client(client, start)
        self._begin_model(client, start)
        seat.bytes_before = seat.bytes_before[0] + carried, seat.bytes_before[1]
        self._told[link] = seat.trained

    def _carried_bytes(self, seat: Seat) -> int:
        """Bytes of optimizer state that go to a process with the round, and would be at a client of its own."""
        assert self._start is not None
        if self._start.fresh_state is not None:
            return 0
        stays = states.read(seat.state, self.sides.parameters, set(seat.holds) & set(seat.cut.client))
        return sum(x.nbytes for entries in stays.values() for x in entries.values() if isinstance(x, Tensor))

    def arrival(self) -> tuple[int, Frame]:
        """See `Server.arrival`. A client that has taken its last step gets done with it before others have a turn."""
        if self.in_order:
            self._settle_last_steps()
        return super().arrival()

    def _settle_last_steps(self) -> None:
        for client in self.playing:
            if self.seats[client].owes_step and not self.seats[client].ahead:
                self._finish(self.inbox.next(Kind.NORM, link=client))

    # ---- who is done -------------------------------------------------------------------------------------------------

    def take_upload(self, letter: Letter) -> None:
        """Takes in what a client made of the round; its process plays the next one."""
        client = letter.link
        seat, link = self.seats[client], self._link_of(client)
        leave = self.inbox.next(Kind.LEAVE, link=client).frame
        about, tensors = letter.frame.about, letter.frame.tensors
        own, rest = self.side_of(letter)
        assert self._start is not None
        state: states.State = {}
        if self._start.about["upload_state"]:
            state = {**self.state_behind(client), **states.unpack(about["state"], rest)}
        self._waiting[client] = {**seat.model, **own}, state, about["samples"]
        light = Frame(Kind.UPLOAD, tensors[-1:], {**about, "state": []}, letter.frame.size)
        self.letters[client] = replace(letter, frame=light)
        self._let_go(client, link, leave)
        self.inbox.playing[link] = None
        self._play_next()  # before the sum, so that the process need not wait for it
        while self._unsummed and self._unsummed[0] in self._waiting:
            self._sum_up(self._unsummed.popleft())
        self._play_next()

    def _let_go(self, client: int, link: int, leave: Frame) -> None:
        """Keeps of a client what it leaves."""
        seat, rest = self.seats[client], iter(leave.tensors)
        seat.model = {}
        seat.bytes_after = self.links[link].sent, self.links[link].received - leave.size
        assert self._start is not None
        if self._start.fresh_state is not None:
            seat.state = defaultdict(dict)
        for name, entries in states.unpack(leave.about["state"], rest).items():
            seat.state[self.sides.parameters[name]] = entries
        self.hold(client, leave.about["position"], list(rest))

    def _sum_up(self, client: int) -> None:
        model, state, samples = self._waiting.pop(client)
        self.finished.add(model, samples)
        self.finished_states.add(state, samples)

    def state_behind(self, client: int) -> states.State:
        """What is here of a client's optimizer state; nothing is copied."""
        return states.read(self.seats[client].state, self.sides.parameters, self.sides.parameters)

    def finish_round(self) -> None:
        """Takes in the clients of the round that have not been yet."""
        while len(self.letters) < len(self.taking_part):
            self.take_upload(self.inbox.next(Kind.UPLOAD))

    def so_far(self) -> tuple[MeanOfModels, states.MeanOfStates]:
        """Sums of what is done of the round, for somebody who adds to them."""
        models, all_states = self.finished.copy(), self.finished_states.copy()
        for client in sorted(self._waiting):
            model, state, samples = self._waiting[client]
            models.add(model, samples)
            all_states.add(state, samples)
        return models, all_states

    # ---- where absent clients are ------------------------------------------------------------------------------------

    def hold(self, client: int, position: dict[str, Any], tensors: list[Tensor]) -> None:
        """Keeps where a client is in its data and its random streams until it is played again."""
        self._positions[client] = {"position": position, "tensors": tensors}

    def held(self, client: int) -> dict[str, Any]:
        """What `hold` was given: ``position`` and ``tensors``; None and nothing of a client that was never played."""
        return self._positions.get(client, {"position": None, "tensors": []})
