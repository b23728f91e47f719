"""What the published code of ASFL does, and what it computes and does not use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import END, Costs
from lightning_edgesplit.scheduling.latency import LatencyModel, rate
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import check, equal_shares, plan_of
from lightning_edgesplit.scheduling.policies.random_cuts import drawn
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile

LAYERS = 9
"""Blocks that the client side of their narrow ResNet-18 can have: a stem and eight residual blocks; the server always
has pooling and the linear layer (``proposed/client.py`` of XiankeQiang/AdaptiveSplitFederatedLearning)."""


def place(layer: int, cuts: int) -> int:
    """Number of the cut that is as deep among `cuts` ones as their cut `layer` among `LAYERS`; the nearest."""
    return min(max(round(layer / LAYERS * cuts), 1), cuts) - 1


def nearest(wanted: int, fitting: Sequence[int]) -> int:
    """The fitting cut that is nearest to a wanted one; the shallower of two."""
    return min(fitting, key=lambda cut: (abs(cut - wanted), cut))


@dataclass(frozen=True)
class ASFLCode:
    """A cut drawn from an interval for each client in each round; equal shares (arXiv:2405.18707, its published code).

    Theirs: each client's cut is drawn uniformly from 2 to 8 in each round (``random.randint(2, 8)`` in
    ``proposed/server.py``), a server-side model per client, whole models averaged, no allocation of resources and no
    selection of clients. Ours: since our modules have other cuts, their 2 to 8 of 9 blocks become those of our cuts
    whose relative depth, by number of cuts (`END` is none), is from 2/9 to 8/9; with nine cuts they are cuts 2 to 8. A
    cut that does not fit the client's memory is not drawn; if none of the interval fits, the nearest that does is.

    Attributes:
        first: The shallowest block, of 9.
        last: The deepest.
        seed: With the round and the client's name it says what is drawn.
        epoch: The epoch of the round.
        number: The round's number in its epoch.
    """

    first: int = 2
    last: int = 8
    seed: int = 0
    epoch: int = 0
    number: int = 0
    name: str = "asfl-code"

    def __post_init__(self) -> None:
        check(self.name, first=(self.first, 1, LAYERS), seed=(self.seed, 0, 2**63))
        check(self.name, last=(self.last, self.first, LAYERS))

    def in_round(self, epoch: int, number: int) -> ASFLCode:
        """See `ByRound`."""
        return replace(self, epoch=epoch, number=number)

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`."""
        model = LatencyModel(costs, clients, server, corrections)
        count = sum(name != END for name in model.names) or 1
        depths = {cut: (cut + 1) * LAYERS for cut in range(count)}  # times `count`: whole numbers compare exactly
        interval = [cut for cut, depth in depths.items() if self.first * count <= depth <= self.last * count]
        interval = interval or [place(self.first, count)]  # a model with a cut or two
        cuts = []
        for k, client in enumerate(clients):
            fitting = model.fits(k)
            possible = [cut for cut in interval if cut in fitting]
            possible = possible or [min(fitting, key=lambda cut: _gap(cut, interval))]
            cuts.append(drawn(possible, self.seed, self.epoch, self.number, client.name or str(k)))
        return plan_of(self.name, model, cuts, equal_shares(len(clients)))


def _gap(cut: int, interval: Sequence[int]) -> tuple[int, int]:
    """How far a cut is from an interval."""
    return min(abs(cut - inside) for inside in interval), cut


@dataclass(frozen=True)
class ASFLThresholds:
    """A cut by the client's link: the slower, the deeper; equal shares (arXiv:2405.18707, its published code).

    Theirs: an uplink above 15, 10 and 5 Mbit/s makes cut 2, 4 and 6 when a client connects (``proposed/server.py``,
    where training then draws the cuts at random instead: `ASFLCode`). Ours: that these cuts are used; that slower links
    get cut 8, where the code leaves the 2 that it began with; that the speed is that of the client's own link, at most
    the shared one's, and unlimited is fast; and that cuts are mapped by relative depth as in `ASFLCode`, to the nearest
    one that fits the client's memory.

    Attributes:
        thresholds: Uplink rates, Mbit/s, falling.
        layers: The cut, of 9 blocks, above each threshold, and below the last.
    """

    thresholds: tuple[float, ...] = (15.0, 10.0, 5.0)
    layers: tuple[int, ...] = (2, 4, 6, 8)
    name: str = "asfl-thresholds"

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(self.thresholds))  # lists, where they come from YAML
        object.__setattr__(self, "layers", tuple(self.layers))
        for threshold in self.thresholds:
            check(self.name, thresholds=(threshold, 0.0, float("inf")))
        if list(self.thresholds) != sorted(set(self.thresholds), reverse=True):
            raise ValueError(f"thresholds={self.thresholds} of policy={self.name!r} must fall from one to the next.")
        if len(self.layers) != len(self.thresholds) + 1:
            raise ValueError(
                f"layers={self.layers} of policy={self.name!r} must be one more than thresholds={self.thresholds}: one"
                " above each, and one below the last."
            )
        for layer in self.layers:
            check(self.name, layers=(layer, 1, LAYERS))

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`."""
        model = LatencyModel(costs, clients, server, corrections)
        count = sum(name != END for name in model.names) or 1
        cuts = []
        for k, client in enumerate(clients):
            bits = rate(1.0, server.uplink, client.uplink)
            mbit = float("inf") if bits is None else bits / 1e6 / model.corrections.uplink[k]
            above = [layer for limit, layer in zip(self.thresholds, self.layers, strict=False) if mbit > limit]
            cuts.append(nearest(place(above[0] if above else self.layers[-1], count), model.fits(k)))
        return plan_of(self.name, model, cuts, equal_shares(len(clients)))
