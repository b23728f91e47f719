"""One step on a copy of the module, split as a cut says, with both sides' costs measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.batch import loss_of, server_leaves
from lightning_edgesplit.splitting.cuts import Cut
from lightning_edgesplit.splitting.sides import Sides
from lightning_edgesplit.splitting.step import ClientPart, Passed, ServerSide, handed_back, run_client_side

if TYPE_CHECKING:
    from lightning_edgesplit.splitting.proof import Probe


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOP, and refuses operations that mix real and meta tensors.

    ``real.add_(meta)`` is accepted by torch and does nothing: a wrong cut would look right.
    """

    def __init__(self, refuse_meta: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.refuse_meta = refuse_meta

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None and not self.refuse_meta:
            return func(*args, **kwargs)
        on_meta = any(x.is_meta for x in _tensors((*args, *kwargs.values())))
        if self.refuse_meta and on_meta:
            raise ImpossibleCutError(f"{func} behind the cut needs a tensor that only the client has")
        output = func(*args, **kwargs)
        if count is not None and not on_meta:
            self.flops += count(*args, **kwargs, out_val=output)
        return output


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among the arguments of an operator, which may be lists of them; cheaper than a pytree."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)


@dataclass
class Measured:
    """FLOP and bytes of one split step, as `CutProfile` has them per sample."""

    client_forward: int = 0
    client_backward: int = 0
    server_forward: int = 0
    server_backward: int = 0
    head: int = 0
    smashed: int = 0
    gradient: int = 0
    returned: int = 0
    returned_gradient: int = 0
    saved: int = 0


class Rehearsal:
    """One step on a probe, split as a cut says: both sides take turns on its one copy of the module.

    Args:
        probe: What the step runs on.
        cut: The cut, not yet proven.

    Attributes:
        cut: The cut with the structures that the step showed, and with all leaves that are sent.
        measured: What the step cost.
        crossed: The tensors that crossed, in both directions.
    """

    def __init__(self, probe: Probe, cut: Cut) -> None:
        self.probe, self.sides = probe, probe.sides
        self.cut = replace(cut, sent=tuple(sorted({*cut.sent, *probe.declared})))
        self.measured = Measured()
        self.crossed: list[Tensor] = []
        self._client = Watch()
        self._received: list[list[Tensor]] = []
        self._returned = Passed([], [], [])
        self._generator = torch.get_rng_state()

    def run(self) -> Tensor:
        """Both sides' forward and backward passes, as they will be; the loss.

        Raises:
            ImpossibleCutError: If one side needs what only the other one has.
        """
        cut, measured = self.cut, self.measured
        assert cut.border is not None
        with self.probe.fresh():
            self._place_client_side()
            with self.probe.context(), self._client, saved_bytes(self.sides) as saved:
                part = run_client_side(
                    self.probe.module, cut.border, self.probe.batch, 0, cut.back, self._there_and_back, self._at_back
                )
            self._client.refuse_meta = False
        measured.saved = saved[0]
        if cut.back is None:
            measured.client_forward = self._client.flops
            loss = end = self._serve(part)
        if not torch.equal(torch.get_rng_state(), self.probe.generator_after):
            raise ImpossibleCutError("the split step does not draw the random numbers of the uncut one")
        if cut.back is not None:
            loss = loss_of(part.output)
            with Watch() as backward:
                gradients = part.backward_to_second_cut(loss, cut.direct)
            measured.head = self._client.flops - measured.client_forward + backward.flops
            measured.returned_gradient = sum(gradient.nbytes for gradient in gradients)
            end = handed_back(float(loss.detach()), gradients, cut.back, self._returned.tensors)
            self.sides.place(cut.away)
        with Watch() as server_backward:
            end.backward()  # type: ignore[no-untyped-call]
        self.sides.collect()
        self._place_client_side()
        if not self._received:
            raise ImpossibleCutError("the loss does not depend on its output")
        with Watch() as client_backward:
            part.backward(cut.border, self._received[0])
        self.sides.place()
        measured.server_backward, measured.client_backward = server_backward.flops, client_backward.flops
        measured.gradient = sum(gradient.nbytes for gradient in self._received[0])
        assert isinstance(loss, Tensor)
        return loss

    def _place_client_side(self) -> None:
        self.sides.place(set(self.sides.names) - set(self.cut.client))

    def _serve(self, part: ClientPart) -> Any:
        """The server's forward pass, on what a server has: shells instead of the client's weights and private leaves.

        Returns:
            The loss; None where the step goes back to the client.
        """
        probe, measured, generator = self.probe, self.measured, torch.get_rng_state()
        assert self.cut.border is not None
        self.cut = replace(self.cut, border=replace(self.cut.border, structures=tuple(part.structures)))
        self.sides.collect()
        self.sides.place(self.cut.away)
        for name, buffer in probe.buffers_before.items():
            if name not in self.cut.client:
                self.sides.set(name, buffer.clone())
        batch = probe.structure.build(server_leaves(probe.leaves, probe.structure.paths(), self.cut.sent))
        torch.manual_seed(0)  # if the server's side draws, only the client's generator state gives the right numbers
        watch, loss = Watch(), None

        def at_cut() -> None:
            torch.set_rng_state(generator)
            watch.refuse_meta = True

        smashed = [tensor.detach().clone() for tensor in part.tensors]
        self.crossed += part.tensors
        measured.smashed = sum(tensor.nbytes for tensor in smashed)
        server = ServerSide(probe.module, self.cut)
        with watch, server.receiving(smashed, part.outputs, part.notes, self._received.append, at_cut) as returned:
            output = probe.step(batch)
            loss = loss_of(output)
        self._returned, measured.server_forward = returned, watch.flops
        self.sides.collect()
        self._generator = torch.get_rng_state() if self.cut.random else generator
        torch.set_rng_state(self._generator)
        return loss

    def _there_and_back(self, part: ClientPart) -> Passed:
        """What the server makes of the client's part, where the step comes back; in the middle of the client's step."""
        self.measured.client_forward = flops = self._client.flops
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):  # the server's are not the client's
            self._serve(part)
        self._client.flops = flops
        self._place_client_side()
        self.crossed += self._returned.tensors
        self.measured.returned = sum(tensor.nbytes for tensor in self._returned.tensors)
        return replace(self._returned, tensors=[tensor.detach().clone() for tensor in self._returned.tensors])

    def _at_back(self) -> None:
        self._client.refuse_meta = True
        torch.set_rng_state(self._generator)  # whatever the client has drawn between the cuts


@contextmanager
def saved_bytes(sides: Sides) -> Iterator[list[int]]:
    """Bytes that autograd keeps for the backward pass, parameters and buffers not counted, each storage once."""
    own = {sides.real(name).untyped_storage().data_ptr() for name in sides.names}
    seen: dict[int, int] = {}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total[0] = sum(seen.values())
