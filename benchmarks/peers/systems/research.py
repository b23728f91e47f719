"""A split-learning loop as research code has it: sockets, pickled tensors, deep copies, sums of state dicts.

Written anew after the habits of public repositories of SplitFed on several processes: messages are pickles behind their
length; the server has a thread per client, and copies the whole model for each of them in every round; FedAvg adds up
state dicts and divides. Nothing is in it to make it slow: clients are forked, after the imports, and compute at the
same time; each process and thread computes with one thread of torch, so that four clients and their server do not get
into each other's way; Nagle's algorithm is off.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import socket
import struct
from collections import OrderedDict
from collections.abc import Iterable
from threading import Thread
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.work import Record, Work, optimizer

State = dict[str, Tensor]


def send(link: socket.socket, message: Any) -> None:
    data = pickle.dumps(message)
    link.sendall(struct.pack(">I", len(data)))
    link.sendall(data)


def receive(link: socket.socket) -> Any:
    (length,) = struct.unpack(">I", _read(link, 4))
    return pickle.loads(_read(link, length))  # noqa: S301  # what is measured here; between processes of our own


def _read(link: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        more = link.recv_into(view[got:])
        if not more:
            raise ConnectionError(f"the other side closed the connection after {got} of {count} bytes")
        got += more
    return data


def fed_avg(states: list[State]) -> State:
    mean = copy.deepcopy(states[0])
    for name in mean:
        for state in states[1:]:
            mean[name] += state[name]
        mean[name] = torch.div(mean[name], len(states))
    return mean


def sides(net: nn.Module, cut: str) -> tuple[nn.Sequential, nn.Sequential]:
    """What a network does up to its child `cut`, and the rest; a torchvision ResNet flattens before its last layer.

    Raises:
        ValueError: If the network has no such child.
    """
    children = OrderedDict(net.named_children())
    if cut not in children:
        raise ValueError(f"cut={cut!r} is none of {', '.join(children)}.")
    names = list(children)
    behind = names[names.index(cut) + 1 :]
    front = OrderedDict((name, children[name]) for name in names if name not in behind)
    back: OrderedDict[str, nn.Module] = OrderedDict()
    for name in behind:
        if name == names[-1]:
            back["flatten"] = nn.Flatten()
        back[name] = children[name]
    return nn.Sequential(front), nn.Sequential(back)


def client(link: socket.socket, net: nn.Module, cut: str, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Trains its side, from the weights that the server sends, until it sends None."""
    front, _ = sides(net, cut)
    while (state := receive(link)) is not None:
        front.load_state_dict(state)
        front.train()
        step = optimizer(front)
        for images, labels in batches:
            step.zero_grad()
            smashed = front(images)
            send(link, (smashed.detach().clone(), labels))
            smashed.backward(receive(link))
            step.step()
        send(link, None)
        send(link, front.state_dict())


def serve(link: socket.socket, net: nn.Module, cut: str, results: dict[int, tuple[State, int, int]], k: int) -> None:
    """A client's round, from the server's side: the whole model copied, its rest trained."""
    front, back = sides(copy.deepcopy(net), cut)
    send(link, front.state_dict())
    back.train()
    step = optimizer(back)
    samples = steps = 0
    while (message := receive(link)) is not None:
        smashed, labels = message
        smashed.requires_grad_()
        step.zero_grad()
        F.cross_entropy(back(smashed), labels).backward()
        send(link, smashed.grad.detach().clone())
        step.step()
        samples, steps = samples + len(labels), steps + 1
    results[k] = {**receive(link), **back.state_dict()}, samples, steps


def one_round(links: list[socket.socket], net: nn.Module, cut: str) -> tuple[int, int]:
    """Serves all clients at the same time, and leaves the mean of their models in `net`.

    Returns:
        Samples and steps of all clients.
    """
    results: dict[int, tuple[State, int, int]] = {}
    threads = [Thread(target=serve, args=(link, net, cut, results, k)) for k, link in enumerate(links)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(results) < len(links):
        raise RuntimeError(f"{len(links) - len(results)} of {len(links)} clients did not end the round; see above")
    done = [results[k] for k in range(len(links))]
    net.load_state_dict(fed_avg([state for state, _, _ in done]))
    return sum(samples for _, samples, _ in done), sum(steps for _, _, steps in done)


def play(work: Work, record: Record, cut: str) -> None:
    """Trains; client processes connect over the loopback."""
    torch.set_num_threads(1)
    net, data = work.model(), work.data()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()

        def main(k: int) -> None:
            with socket.create_connection(address) as link:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                send(link, k)
                client(link, net, cut, work.loader(k, data))

        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=main, args=(k,), daemon=True) for k in range(work.clients)]
        for process in processes:
            process.start()
        links: dict[int, socket.socket] = {}
        for _ in processes:
            link, _ = listener.accept()
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            links[receive(link)] = link
    for _ in range(work.rounds):
        samples, steps = one_round([links[k] for k in range(work.clients)], net, cut)
        record.end_round(samples, steps, net.state_dict())
    for link in links.values():
        send(link, None)
        link.close()
    for process in processes:
        process.join()
