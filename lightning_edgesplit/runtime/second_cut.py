"""The server's part of steps that go back to their clients: labels, last layers and the loss are there (U-shaped).

Such a step is served twice. At first the layers between the two cuts run forward, and what they give goes to the
client. Once its gradients come, the step is an arrival like others: Lightning's loop gets the client's loss as a tensor
whose backward pass goes on through those layers. In between, other clients are served.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lightning_edgesplit.runtime.inbox import Letter
from lightning_edgesplit.runtime.seat import Halfway, Seat, Service
from lightning_edgesplit.runtime.wire import Frame, Kind
from lightning_edgesplit.splitting.batch import step_arguments
from lightning_edgesplit.splitting.step import handed_back

if TYPE_CHECKING:
    from lightning_edgesplit.runtime.server import Server


def pass_through(server: Server, letter: Letter) -> None:
    """Runs the layers between a client's two cuts, and sends it what they give."""
    client, frame, seat = letter.link, letter.frame, server.seats[letter.link]
    back = seat.cut.back
    assert back is not None
    service = Service(letter.arrived, begun=time.monotonic())
    batch = server.batch_of(client, frame)
    buffers = {name: seat.model[name].clone() for name in server.sides.buffers if name in seat.model}
    logged: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with (
        server.installed(client),
        # Until the backward pass comes, the parameters take steps of other clients: what is saved for it is this
        # client's data, without the version counter that they have in common.
        saved_tensors_hooks(lambda tensor: tensor.data, lambda tensor: tensor),
        server.stepping(client, frame, lambda *args, **kwargs: logged.append((args, kwargs))) as passed,
        torch.enable_grad(),
        server.context(),
    ):
        server.module.training_step(*step_arguments(server.module, batch, frame.about["index"]))  # type: ignore[operator]
    seat.halfway = Halfway(service, batch, passed, buffers, logged)
    tensors = [tensor.detach() for tensor in passed.tensors]
    if seat.generator is not None:
        tensors.append(seat.generator)
    about: dict[str, Any] = {"notes": passed.notes} if back.reads else {}
    if passed.outputs != seat.returned:
        about["outputs"] = seat.returned = passed.outputs
    stretch(seat, service, frame, forward=True)
    service.sent = time.monotonic()
    server.hand_out(client, Frame(Kind.BACK, tensors, about))
    service.done = time.monotonic()


def stretch(seat: Seat, service: Service, frame: Frame, forward: bool) -> None:
    """Waits until the emulated server would be done with its half of the step, or with all of it."""
    if seat.orders is not None and seat.orders.server_seconds is not None:
        share = seat.orders.server_forward if forward else 1 - seat.orders.server_forward
        seconds = share * seat.orders.server_seconds * frame.about["samples"]
        time.sleep(max(0.0, service.begun + seconds - time.monotonic()))


def clients_loss(seat: Seat, frame: Frame) -> Tensor:
    """The loss that a client computed itself, as a tensor whose backward pass is the server's part of the step."""
    if seat.halfway is None:
        return torch.tensor(frame.about["loss"], requires_grad=True)
    assert seat.cut.back is not None
    return handed_back(frame.about["loss"], frame.tensors, seat.cut.back, seat.halfway.passed.tensors)
