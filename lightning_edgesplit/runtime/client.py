"""A client: its own data, the first layers of the model, and the server's orders."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_edgesplit.errors import ClientLostError
from lightning_edgesplit.runtime import states, trained
from lightning_edgesplit.runtime.compression import compressed, restored
from lightning_edgesplit.runtime.exchange import digest, resting
from lightning_edgesplit.runtime.inbox import Inbox, Letter
from lightning_edgesplit.runtime.link import Link
from lightning_edgesplit.runtime.overlap import Sender, divided, fresh_stream
from lightning_edgesplit.runtime.supply import Supply
from lightning_edgesplit.runtime.throttle import AsItComes, Asked, Emulation, Throttle
from lightning_edgesplit.runtime.weights import Begun
from lightning_edgesplit.runtime.wire import Frame, Kind
from lightning_edgesplit.splitting import END, Cut
from lightning_edgesplit.splitting.batch import PLAIN, batch_size, loss_of, step_arguments
from lightning_edgesplit.splitting.sides import Sides
from lightning_edgesplit.splitting.step import ClientPart, Passed, run_client_side
from lightning_edgesplit.splitting.tree import Structure, flatten

TIMES = ("begin", "forward", "through", "back", "head", "loss", "gradient", "resumed", "backward")
"""What a client notes of each arrival of a local step, seconds of its monotonic clock: when it began, when the forward
pass was done, the smashed data through, what comes back here, the last layers done, their gradients through, the
gradient here, and when the backward pass began and was done. Without a second cut the three in the middle are the one
before them; with micro-batches there are several arrivals, and a gradient may wait for its backward pass."""


class _Stopped(Exception):
    """The server ended the run."""


class Client:
    """Trains the client-side model of one client until the server stops it.

    Args:
        module: The LightningModule; only its client-side part is kept in memory.
        optimizer: Its optimizer.
        supply: This client's own batches.
        link: The connection to the server.
        heartbeat: Seconds between two signs of life.
        prepare: Makes of what the loader yields what ``training_step`` takes.
        context: Opened around every forward pass (mixed precision).
        on_round: Called with the Trainer's epoch and ``global_step`` when a round begins.
        structures: Called while the module is still whole, where a step comes back to this client (`structures_of`).
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        supply: Supply,
        link: Link,
        heartbeat: float,
        prepare: Callable[[Any], Any] = lambda batch: batch,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        on_round: Callable[[int, int], None] = lambda epoch, step: None,
        structures: Callable[[], dict[tuple[str, int], Structure]] = dict,
    ) -> None:
        self.module, self.optimizer, self.supply, self.link = module, optimizer, supply, link
        self.prepare, self.on_round, self._context = prepare, on_round, context
        self._find_structures = structures
        self.sides = Sides(module)
        self.cut: Cut | None = None
        self.throttle = Throttle()
        self._granted = threading.Semaphore(0)
        self._inbox = Inbox([link], ["the server"], {Kind.GRANT: lambda link, frame: self._granted.release()})
        self._sender: Sender | None = None
        self._lost = self._norm = 0.0
        self._heartbeat, self._ended = heartbeat, threading.Event()
        self._samples = 0
        self._asking = "uplink"
        self._logged: list[list[Any]] = []
        self._outputs: Sequence[Sequence[Any]] = []
        self._returned: Sequence[Sequence[Any]] = []
        self._structures: dict[tuple[str, int], Structure] = {}
        self._generator: Tensor | None = None
        self._buffers_before: dict[str, Tensor] = {}
        self._received: dict[str, bytes] = {}
        self._begun = Begun()
        module.__dict__["log"] = self._log

    def _log(self, name: str, value: Any, **kwargs: Any) -> None:
        if isinstance(value, Tensor) and value.is_meta:
            return  # made by the server, which logs it
        number = float(value.detach()) if isinstance(value, Tensor) else float(value)
        plain = {key: v for key, v in kwargs.items() if isinstance(v, (bool, int, float, str))}
        self._logged.append([name, number, plain])

    def run(self) -> None:
        """Obeys the server until it says stop. An exception is told to the server, as text, and raised here."""
        threading.Thread(target=self._beat, name="signs of life", daemon=True).start()
        try:
            self.link.send(Frame(Kind.HELLO, about=self._greeting()))
            while True:
                self._round(self._await(Kind.ROUND))
        except _Stopped:
            self.link.send(Frame(Kind.GOODBYE))
        except ClientLostError:
            self.link.close()
            raise  # the server is gone: nobody to tell
        except Exception as error:
            about = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-8000:]}
            self.link.send(Frame(Kind.FAILED, about=about))
            raise
        finally:
            self._ended.set()
            if self._sender is not None:
                self._sender.close()
            self.link.hang_up()

    def _greeting(self) -> dict[str, Any]:
        """How much data there is here."""
        return self.supply.extent()

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat):
            try:
                self.link.send(Frame(Kind.ALIVE))
            except ClientLostError:
                return  # the thread that receives has the same news

    def _await(self, kind: Kind) -> Letter:
        """The next order of that kind; answers requests for a snapshot meanwhile."""
        while True:
            letter = self._inbox.next(kind, Kind.SNAPSHOT, Kind.RESTORE, Kind.STOP)
            if letter.frame.kind is kind:
                return letter
            self._obey(letter)

    def _obey(self, letter: Letter) -> None:
        if letter.frame.kind is Kind.STOP:
            raise _Stopped
        if letter.frame.kind is Kind.RESTORE:
            self._restore(letter.frame)
            return
        about: dict[str, Any] = {"samples": self._samples}
        tensors = list(self._weights().values()) if letter.frame.about["weights"] else []
        if letter.frame.about["state"]:
            about["state"], state = states.pack(states.read(self.optimizer.state, self.sides.parameters, self._own))
            tensors += state
        if letter.frame.about["position"]:
            about["position"], position = self.supply.position()
            tensors += position
        self.link.send(Frame(Kind.SNAPSHOT, tensors, about))

    def _restore(self, order: Frame) -> None:
        """Goes back to where it was in its data."""
        self.supply.restore(order.about, order.tensors)

    @property
    def _own(self) -> tuple[str, ...]:
        return self.cut.client if self.cut is not None else ()

    def _weights(self, besides: Collection[str] = ()) -> dict[str, Tensor]:
        """This side's parameters and buffers after the last whole step; of a step under way nothing is seen."""
        names = [name for name in self._own if name not in besides]
        return {name: self._buffers_before.get(name, self.sides.real(name)).detach() for name in names}

    def _round(self, order: Letter) -> None:
        about = order.frame.about
        emulation = Emulation(**about["emulation"]) if about["emulation"] else None
        if about["arbited"]:
            self._asking = "uplink"
            self.throttle = Throttle(emulation, uplink=Asked(self._ask), downlink=AsItComes())
        else:
            self.throttle = Throttle(emulation)
        self.throttle.received(order.frame.size, order.arrived)
        downloaded = time.monotonic()
        self.on_round(about["epoch"], about["global_step"])
        self._take_over(order.frame)
        if about["stream"]:
            torch.set_rng_state(order.frame.tensors[-1])
        if about["new_epoch"]:
            self.supply.begin_epoch()
        self.supply.begin_round(len(about["parts"]), about["samples"])
        if about["samples"]:  # dealt anew: how many batches the epoch has is known when it ends
            about["batches"] = self.supply.index + len(about["samples"]) if about["ends"] else None
        self._samples, self._lost, self._norm = 0, 0.0, 0.0
        records = [times for parts in about["parts"] for times in self._step(about, parts)]
        upload, self._asking = time.monotonic(), "upload"
        kept = [name for name, before in self._received.items() if digest(self.sides.real(name)) == before]
        tensors, weight_error = self._begun.returned(self._weights(besides=kept))
        state: list[Any] = []
        if about["upload_state"]:
            state, more = states.pack(states.read(self.optimizer.state, self.sides.parameters, self._own))
            tensors += more
        if about["stream"]:
            tensors.append(torch.get_rng_state())
        tensors.append(torch.tensor(records, dtype=torch.float64).reshape(-1, len(TIMES)))
        # of one width whatever the digits, so that the same run sends the same number of bytes
        times = {"downloaded": f"{downloaded:.16e}", "upload": f"{upload:.16e}"}
        lost = self._lost / self._norm if self._norm else None
        done = {
            "samples": self._samples, "times": times, "overrun": self.throttle.overrun, "state": state, "lost": lost,
            "kept": kept,
        }  # fmt: skip
        if weight_error is not None:
            done["weight_error"] = f"{weight_error:.16e}"  # as text, which may say nan where training has diverged
        self.link.send(Frame(Kind.UPLOAD, tensors, done), pace=self.throttle.sending)

    def _ask(self, size: int) -> None:
        """Asks the server for the uplink, and waits for the grant."""
        self.link.send(Frame(Kind.ASK, about={"size": size, "phase": self._asking}))
        while not self._granted.acquire(timeout=0.1):
            if self._inbox.over:  # the server is gone, or says stop, which is the next thing to be read
                raise ClientLostError("the server is gone, or has ended the run, while a grant was waited for")

    def _take_over(self, order: Frame) -> None:
        """Takes this round's cut, weights and moved optimizer states; hands over those that now are the server's."""
        before, self.cut = self._own, Cut.from_json(order.about["cut"])
        if self.cut.back is not None and not self._structures:
            self._structures = self._find_structures()
        self._outputs = self._returned = []
        rest = iter(order.tensors)
        self._begun = Begun(order.about.get("weight_compression", "none"))
        for name in order.about["sent"]:
            self.sides.set(name, self._begun.take(name, rest, self.sides.real(name).dtype))
        if order.about["fresh_state"]:
            self.optimizer.state.clear()
        else:
            left = [name for name in before if name not in self.cut.client]
            if any(name in self.sides.parameters for name in left):
                about, tensors = states.pack(states.take(self.optimizer, self.sides.parameters, left))
                self.link.send(Frame(Kind.HANDOVER, tensors, {"state": about}))
        for name, entries in states.unpack(order.about["state"], rest).items():
            self.optimizer.state[self.sides.parameters[name]] = entries
        if order.about["trained"] is not None:
            trained.adopt(order.about["trained"], self.module, self.sides.parameters, self.optimizer)
        self._set_groups(order.about["groups"])
        before_round, sent = self._received, set(order.about["sent"])
        self._received = {
            name: digest(self.sides.real(name)) if name in sent else before_round[name]
            for name in resting(self.sides.parameters, self.cut.client)
        }
        away = set(self.sides.names) - set(self.cut.client)
        for name in away:
            self.sides.release(name)
        self.sides.place(away)

    def _step(self, about_round: dict[str, Any], parts: int) -> list[list[float]]:
        """One local step, in so many micro-batches; the `TIMES` of its arrivals."""
        while (letter := self._inbox.poll(Kind.SNAPSHOT, Kind.STOP)) is not None:
            self._obey(letter)
        begin = time.monotonic()
        index, batch = self.supply.next()
        batch = self.prepare(batch)
        accumulate = about_round["accumulate"]
        if index % accumulate == 0:
            self.optimizer.zero_grad()
        self._logged.clear()
        assert self.cut is not None
        about: dict[str, Any] = {
            "index": index,
            "samples": batch_size(batch),
            "logged": self._logged,
            "steps": (index + 1) % accumulate == 0 or index + 1 == about_round["batches"],
        }
        self._buffers_before = {n: self.sides.buffers[n].clone() for n in self._own if n in self.sides.buffers}
        if parts > 1:
            records = self._overlapped_step(batch, about, about_round, parts)
        else:
            run = self._whole_step if self.cut.name == END else self._split_step
            records = [[begin, *run(begin, batch, about, about_round)]]
        self.sides.collect()
        self._buffers_before = {}
        self._samples += about["samples"]
        return records

    def _load_ahead(self) -> None:
        """Loads the next batch of the round while the server computes.

        Not where numbers are drawn for the step meanwhile, or where loading would come out of emulated time.
        """
        assert self.cut is not None
        if not self.cut.random and self.cut.back is None and self.throttle.emulation is None:
            self.supply.load_ahead()

    def _split_step(self, begin: float, batch: Any, about: dict[str, Any], about_round: dict[str, Any]) -> list[float]:
        """A step of which the server runs the rest, or what is between the client's first and last layers."""
        cut = self.cut
        assert cut is not None
        assert cut.border is not None
        times: list[float] = []

        def send(part: Passed, kind: Kind) -> None:
            self.throttle.forward(begin, about["samples"])
            times.append(time.monotonic())
            state = [torch.get_rng_state()] if cut.random else []
            self.link.send(self._smashed(kind, part, batch, about, about_round, state), pace=self.throttle.sending)
            times.append(time.monotonic())

        def there_and_back(part: Passed) -> Passed:
            send(part, Kind.THROUGH)
            return self._take_back(times)

        with self._context():
            part = run_client_side(
                self.module, cut.border, batch, about["index"], cut.back, there_and_back, self._go_on_drawing
            )
        if cut.back is None:
            send(part, Kind.SMASHED)
            times += times[-1:] * 3  # it does not come back in between
            self._load_ahead()
        else:
            self._finish_head(part, about, about_round["accumulate"], times)
        answer = self._await(Kind.GRADIENT)
        self.throttle.received(answer.frame.size, answer.arrived)
        times += self._here_since(answer)
        state = self._backward(part, answer.frame)
        if state is not None and cut.back is None:
            torch.set_rng_state(state)
        self._take_step(about, about_round)
        self.throttle.backward(times[-1], about["samples"])
        return [*times, time.monotonic()]

    def _overlapped_step(
        self, batch: Any, about: dict[str, Any], about_round: dict[str, Any], parts: int
    ) -> list[list[float]]:
        """A step in micro-batches: all forward passes, smashed data on the way meanwhile; then the backward passes.

        The gradients of the micro-batches' losses, each weighted with its part of the samples, are summed in their
        order. Huang et al. 2019 (GPipe, arXiv:1811.06965); between client and server: PiPar, arXiv:2302.12803.
        """
        cut = self.cut
        assert cut is not None
        assert cut.border is not None
        self._sender = self._sender or Sender()
        records, passed = [], []
        for number, own in enumerate(divided(batch, parts)):
            begin, samples = time.monotonic(), batch_size(own)
            self._logged.clear()
            with self._context():
                part = run_client_side(self.module, cut.border, own, about["index"])
            self.throttle.forward(begin, samples)
            forward = time.monotonic()
            of_part = {
                **about, "samples": samples, "logged": list(self._logged), "part": number, "parts": parts,
                "weight": samples / about["samples"], "steps": about["steps"] and number + 1 == parts,
            }  # fmt: skip
            state = [fresh_stream()] if cut.random else []
            frame = self._smashed(Kind.SMASHED, part, own, of_part, about_round, state)
            self._sender.put(partial(self._send_paced, frame))
            records.append([begin, *[forward] * 5])
            passed.append((part, samples))
        self._load_ahead()
        for times, (part, samples) in zip(records, passed, strict=True):
            answer = self._await(Kind.GRADIENT)
            self.throttle.received(answer.frame.size, answer.arrived)
            times += self._here_since(answer)
            self._backward(part, answer.frame)
            if times is records[-1]:
                self._take_step(about, about_round)
            self.throttle.backward(times[-1], samples)
            times.append(time.monotonic())
        if self._sender.error is not None:
            raise self._sender.error
        return records

    def _here_since(self, answer: Letter) -> list[float]:
        """When a gradient was here, and when its backward pass began: now."""
        now = time.monotonic()
        return [answer.arrived if self.throttle.emulation is None else now, now]

    def _send_paced(self, frame: Frame) -> None:
        self.link.send(frame, pace=self.throttle.sending)

    def _backward(self, part: ClientPart, answer: Frame) -> Tensor | None:
        """The backward pass from the gradient at the cut; returns where random numbers go on, if that came with it."""
        cut = self.cut
        assert cut is not None
        assert cut.border is not None
        gradients = list(restored(answer).tensors)
        state = gradients.pop() if cut.random and cut.back is None else None
        tied = [self.sides.real(name) for name in cut.tied]
        part.backward(cut.border, gradients[: len(gradients) - len(tied)])
        for parameter, gradient in zip(tied, gradients[len(gradients) - len(tied) :], strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._set_groups(answer.about.get("groups"))
        return state

    def _take_step(self, about: dict[str, Any], about_round: dict[str, Any]) -> None:
        """The optimizer's step, if it is time for one."""
        if about["steps"]:
            self._clip(about_round["clip"], together=True)
            self.optimizer.step()

    def _smashed(
        self, kind: Kind, part: Passed, batch: Any, about: dict[str, Any], about_round: dict[str, Any],
        state: list[Tensor],
    ) -> Frame:  # fmt: skip
        """The smashed data, and what else the server needs of the batch, the weights and the step's path."""
        cut = self.cut
        assert cut is not None
        assert cut.border is not None
        leaves = flatten(batch)[0]
        sent = [leaves[i] for i in cut.sent]
        tied = [self.sides.real(name) for name in cut.tied]
        tensors = [x.detach() for x in (*part.tensors, *sent, *tied) if isinstance(x, Tensor)] + state
        about["shapes"] = [list(x.shape) if isinstance(x, Tensor) else None for x in leaves]
        about["plain"] = [x for x in sent if isinstance(x, PLAIN)]
        if cut.border.reads:
            about["notes"] = part.notes
        if part.outputs != self._outputs:
            about["outputs"] = self._outputs = part.outputs
        frame = Frame(kind, tensors, about)
        if about_round["compression"] == "int8":
            frame, lost, norm = compressed(frame, len(part.tensors))
            self._lost, self._norm = self._lost + lost, self._norm + norm
        return frame

    def _take_back(self, times: list[float]) -> Passed:
        """Waits for what the server made of the smashed data, where this side runs the last layers."""
        cut = self.cut
        assert cut is not None
        assert cut.back is not None
        answer = self._await(Kind.BACK)
        self.throttle.received(answer.frame.size, answer.arrived)
        times.append(time.monotonic())
        tensors, about = list(answer.frame.tensors), answer.frame.about
        self._generator = tensors.pop() if cut.random else None
        self._returned = about.get("outputs", self._returned)
        structures = [self._structures[call] for call in zip(cut.back.path, cut.back.numbers, strict=True)]
        return Passed(tensors, self._returned, structures, about.get("notes", ()))

    def _go_on_drawing(self) -> None:
        """Behind the second cut random numbers go on where the server's ended, whatever was drawn here on the way."""
        if self._generator is not None:
            torch.set_rng_state(self._generator)

    def _finish_head(self, part: ClientPart, about: dict[str, Any], accumulate: int, times: list[float]) -> None:
        """The loss and its backward pass to the second cut; the gradients there go to the server."""
        assert self.cut is not None
        loss = loss_of(part.output)
        gradients = part.backward_to_second_cut(loss / accumulate, self.cut.direct)
        self.throttle.head(times[-1], about["samples"])
        times.append(time.monotonic())
        own = {key: about[key] for key in ("index", "samples", "logged", "steps")}
        self.link.send(Frame(Kind.LOSS, gradients, {**own, "loss": float(loss.detach())}), pace=self.throttle.sending)
        times.append(time.monotonic())

    def _whole_step(self, begin: float, batch: Any, about: dict[str, Any], about_round: dict[str, Any]) -> list[float]:
        """The cut behind the last layer: nothing but numbers for the server's log goes out, outside emulated time.

        Only under a schedule per step the answer is waited for, since the next rate is in it.
        """
        with self._context():
            loss = loss_of(self.module.training_step(*step_arguments(self.module, batch, about["index"])))  # type: ignore[operator]
        self.throttle.forward(begin, about["samples"])
        forward = time.monotonic()
        self.link.send(Frame(Kind.SMASHED, (), {**about, "loss": float(loss.detach())}))
        if about_round["paced"]:
            self._set_groups(self._await(Kind.GRADIENT).frame.about.get("groups"))
        begun = time.monotonic()
        (loss / about_round["accumulate"]).backward()
        if about["steps"]:
            self._clip(about_round["clip"], together=False)
            self.optimizer.step()
        self.throttle.backward(begun, about["samples"])
        return [forward, *[forward] * 4, begun, begun, time.monotonic()]

    def _clip(self, clip: Sequence[Any] | None, together: bool) -> None:
        """Clips this side's gradients by value, or by the norm of both sides' together, which the server computes."""
        if clip is None:
            return
        algorithm, limit = clip
        trained = [self.sides.parameters[name] for name in self._own if name in self.sides.parameters]
        if algorithm == "value":
            torch.nn.utils.clip_grad_value_(trained, limit)
        elif not together:
            torch.nn.utils.clip_grad_norm_(trained, limit)
        else:
            gradients = [p.grad for p in trained if p.grad is not None]
            square = sum((float(g.double().square().sum()) for g in gradients), start=0.0)
            self.link.send(Frame(Kind.NORM, about={"square": square}))
            factor = self._await(Kind.CLIP).frame.about["factor"]
            for gradient in gradients:
                gradient.mul_(factor)

    def _set_groups(self, groups: list[dict[str, Any]] | None) -> None:
        """The optimizer's hyper-parameters as the server has them; None: they have not changed."""
        if groups is None:
            return
        for group, values in zip(self.optimizer.param_groups, groups, strict=True):
            group.update({key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
