"""A client: its own data, the first layers of the model, and the server's orders."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_edgesplit.runtime.wire import Frame, Kind, Link
from lightning_edgesplit.splitting import END, Cut
from lightning_edgesplit.splitting.batch import batch_size, flatten, loss_of, step_arguments
from lightning_edgesplit.splitting.sides import Sides
from lightning_edgesplit.splitting.step import run_client_side


class _Stopped(Exception):
    """The server ended the run."""


class Client:
    """Trains the client-side model of one client until the server stops it.

    Args:
        module: The LightningModule; only its client-side part is kept in memory.
        optimizer: Its optimizer.
        loader: This client's own batches.
        link: The connection to the server.
        heartbeat: Seconds between two signs of life.
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, loader: Iterable[Any], link: Link, heartbeat: float
    ) -> None:
        self.module, self.optimizer, self.loader, self.link = module, optimizer, loader, link
        self.sides = Sides(module)
        self._heartbeat, self._ended = heartbeat, threading.Event()
        self._batches: Iterator[tuple[int, Any]] = iter(())
        self._logged: list[list[Any]] = []
        module.__dict__["log"] = self._log

    def _log(self, name: str, value: Any, **kwargs: Any) -> None:
        number = float(value.detach()) if isinstance(value, Tensor) else float(value)
        plain = {key: v for key, v in kwargs.items() if isinstance(v, (bool, int, float, str))}
        self._logged.append([name, number, plain])

    def run(self) -> None:
        """Obeys the server until it says stop. An exception is told to the server, as text."""
        pulse = threading.Thread(target=self._beat, daemon=True)
        pulse.start()
        try:
            while True:
                frame = self._await(Kind.ROUND)
                self._round(frame)
        except _Stopped:
            self.link.send(Frame(Kind.GOODBYE))
        except Exception as error:
            about = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-8000:]}
            self.link.send(Frame(Kind.FAILED, about=about))
        finally:
            self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat):
            self.link.send(Frame(Kind.ALIVE))

    def _await(self, kind: Kind) -> Frame:
        """The next frame of that kind; answers requests for a snapshot meanwhile."""
        while True:
            frame = self.link.receive()
            if frame.kind is kind:
                return frame
            if frame.kind is Kind.SNAPSHOT:
                self.link.send(Frame(Kind.SNAPSHOT, self._weights()))
            elif frame.kind is Kind.STOP:
                raise _Stopped
            else:
                raise ValueError(f"the server sent {frame.kind.name} where {kind.name} was expected")

    def _weights(self) -> list[Tensor]:
        return [self.sides.real(name).detach() for name in self.cut.client]

    def _round(self, order: Frame) -> None:
        self.cut = Cut.from_json(order.about["cut"])
        away = set(self.sides.names) - set(self.cut.client)
        for name, tensor in zip(self.cut.client, order.tensors, strict=True):
            self.sides.set(name, tensor)
        for name in away:
            self.sides.release(name)
        self.sides.place(away)
        if order.about["new_epoch"]:
            self._batches = iter(enumerate(self.loader))
        samples = 0
        for _ in range(order.about["steps"]):
            index, batch = next(self._batches)
            samples += batch_size(batch)
            self.optimizer.zero_grad()
            self._logged.clear()
            (self._whole_step if self.cut.name == END else self._split_step)(batch, index)
            self.sides.collect()
        self.link.send(Frame(Kind.UPLOAD, self._weights(), {"samples": samples}))

    def _split_step(self, batch: Any, index: int) -> None:
        smashed = run_client_side(self.module, self.cut.path, batch, index)
        leaves = flatten(batch)[0]
        tensors = [smashed.detach(), *(leaves[i] for i in self.cut.sent if isinstance(leaves[i], Tensor))]
        if self.cut.random:
            tensors.append(torch.get_rng_state())
        shapes = [list(x.shape) if isinstance(x, Tensor) else None for x in leaves]
        about = {"index": index, "shapes": shapes, "logged": self._logged, "samples": batch_size(batch)}
        self.link.send(Frame(Kind.SMASHED, tensors, about))
        answer = self._await(Kind.GRADIENT)
        if self.cut.random:
            torch.set_rng_state(answer.tensors[1])
        smashed.backward(answer.tensors[0])  # type: ignore[no-untyped-call]
        self._step(answer)

    def _whole_step(self, batch: Any, index: int) -> None:
        loss = loss_of(self.module.training_step(*step_arguments(self.module, batch, index)))  # type: ignore[operator]
        about = {"index": index, "loss": float(loss.detach()), "logged": self._logged, "samples": batch_size(batch)}
        self.link.send(Frame(Kind.SMASHED, (), about))
        answer = self._await(Kind.GRADIENT)
        loss.backward()  # type: ignore[no-untyped-call]
        self._step(answer)

    def _step(self, answer: Frame) -> None:
        """The optimizer step, with the hyper-parameters that the server uses for its own."""
        for group, values in zip(self.optimizer.param_groups, answer.about["groups"], strict=True):
            group.update({key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
        self.optimizer.step()
