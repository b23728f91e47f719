"""Small random instances of the scheduling problem."""

from __future__ import annotations

import random

from lightning_edgesplit.scheduling import ClientProfile, Costs, CutCost, ServerProfile


def cuts(rng: random.Random, count: int) -> tuple[CutCost, ...]:
    """`count` cuts, the deeper the more work and weights on the client; the last is the end."""
    work = sorted(rng.uniform(1e6, 5e8) for _ in range(count))
    weights = sorted(rng.uniform(1e3, 4e7) for _ in range(count))
    made = [
        CutCost(
            name=f"layer{i}",
            client_forward=work[i],
            client_backward=2 * work[i],
            server=3 * (work[-1] - work[i]) + 1e6,
            smashed=rng.uniform(1e3, 3e5),
            gradient=rng.uniform(1e3, 3e5),
            weights=weights[i],
            step_up=500.0,
            step_down=400.0,
            memory_fixed=2 * weights[i],
            memory_per_sample=rng.uniform(1e3, 1e6),
        )
        for i in range(count - 1)
    ]
    end = CutCost("end", work[-1], 2 * work[-1], 0.0, 0.0, 0.0, weights[-1], memory_fixed=2 * weights[-1])
    return (*made, end)


def instance(seed: int, clients: int = 3, count: int = 4):
    """Costs, clients and server."""
    rng = random.Random(seed)
    costs = Costs(
        cuts(rng, count),
        batch=tuple(rng.choice([8, 16, 32]) for _ in range(clients)),
        steps=tuple(rng.randint(1, 20) for _ in range(clients)),
    )
    profiles = [
        ClientProfile(
            name=f"client-{k}",
            flops=10 ** rng.uniform(9.5, 12),
            uplink=rng.choice([None, 10 ** rng.uniform(6.5, 9)]),
            downlink=rng.choice([None, 10 ** rng.uniform(6.5, 9)]),
            latency=rng.choice([0.0, 0.01]),
        )
        for k in range(clients)
    ]
    server = ServerProfile(
        flops=10 ** rng.uniform(11, 13),
        uplink=rng.choice([10 ** rng.uniform(7, 9)] * 4 + [None]),
        downlink=10 ** rng.uniform(7, 9),
    )
    return costs, profiles, server


def seconds(costs: Costs, clients, server, k: int, cut: int, share: float) -> dict[str, float]:
    """The oracle's own seconds by phase, per local step and, for the last two, per round; the server at full speed."""
    cost, client, batch = costs.cuts[cut], clients[k], costs.batch[k]
    up, down = (
        min([share * link if link else float("inf"), own or float("inf")]) / 8
        for link, own in ((server.uplink, client.uplink), (server.downlink, client.downlink))
    )
    split = cost.name != "end"
    message = client.latency if split else 0.0
    return {
        "forward": batch * cost.client_forward / client.flops,
        "uplink": (batch * cost.smashed + cost.step_up) / up + message,
        "server": batch * cost.server / server.flops if split else 0.0,
        "downlink": (batch * cost.gradient + cost.step_down) / down + message,
        "backward": batch * cost.client_backward / client.flops,
        "download": cost.weights / down + client.latency,
        "upload": cost.weights / up + client.latency,
    }


STEP = ("forward", "uplink", "server", "downlink", "backward")


def round_of(phases: dict[str, float], steps: int, server: float = 1.0) -> float:
    """Seconds of a client's round with that part of the server's speed."""
    step = sum(phases[name] / (server if name == "server" and phases[name] else 1.0) for name in STEP)
    return steps * step + phases["download"] + phases["upload"]
