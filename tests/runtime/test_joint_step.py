from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.runtime.joint import join, join_by_depth
from lightning_edgesplit.runtime.wire import Frame, Kind
from lightning_edgesplit.splitting.cuts import Border, Cut
from lightning_edgesplit.splitting.mixing import Mixture

CUT = Cut("net", border=Border(path=("pad", "net"), tensors=((1, 0, True),)), sent=(1, 2), random=True)


def frame(samples, mask=None, plain=(3,), generator=0):
    smashed, labels = torch.randn(samples, 4), torch.arange(samples)
    mask = torch.eye(5) if mask is None else mask
    about = {
        "index": 2, "samples": samples, "logged": [["norm", 0.5, {"on_step": True}]], "plain": list(plain),
        "shapes": [[samples, 7], [samples], [5, 5], None], "steps": True,
        "outputs": [[["float32", samples, 9], {"is": 1}], [["float32", samples, 4]]],
    }  # fmt: skip
    return Frame(Kind.SMASHED, [smashed, labels, mask, torch.full((3,), generator)], about)


def seats():
    return [SimpleNamespace(outputs=[]) for _ in range(3)]


def test_parts_become_one_batch_and_what_all_share_stays_one():
    frames = [frame(2), frame(3)]
    joint = join(seats(), [0, 2], frames, CUT)
    smashed, labels, mask, _ = joint.frame.tensors
    assert torch.equal(smashed, torch.cat([f.tensors[0] for f in frames]))
    assert labels.tolist() == [0, 1, 0, 1, 2]
    assert torch.equal(mask, torch.eye(5))
    about = joint.frame.about
    assert (about["samples"], about["plain"]) == (5, [3])
    assert about["shapes"] == [[5, 7], [5], [5, 5], None]
    assert about["outputs"] == [[["float32", 5, 9], {"is": 1}], [["float32", 5, 4]]]
    assert [options["batch_size"] for _, _, options in about["logged"]] == [2, 3]


def test_every_client_gets_its_rows_and_its_own_random_stream_back():
    joint = join(seats(), [0, 2], [frame(2, generator=7), frame(3, generator=8)], CUT)
    gradient, advanced = torch.arange(5.0)[:, None], torch.full((3,), 99)
    divided = dict(joint.divided([gradient], [advanced]))
    assert {client: own[0].flatten().tolist() for client, own in divided.items()} == {0: [0, 1], 2: [2, 3, 4]}
    assert {client: own[1].tolist() for client, own in divided.items()} == {0: [99] * 3, 2: [8] * 3}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (frame(3, mask=torch.ones(5, 5)), "does not have one row per sample"),
        (frame(3, plain=(4,)), "numbers and texts of the batch differ"),
    ],
)
def test_what_differs_between_clients_is_refused(other, message):
    with pytest.raises(ImpossibleCutError, match=message):
        join(seats(), [0, 1], [frame(2), other], CUT)


def test_outputs_that_have_not_changed_are_remembered_by_the_seats():
    own, first, second = seats(), [frame(2), frame(3)], [frame(2), frame(3)]
    join(own, [0, 1], first, CUT)
    for again in second:
        del again.about["outputs"]
    assert join(own, [0, 1], second, CUT).frame.about["outputs"][1] == [["float32", 5, 4]]


DEEP = Cut("head", border=Border(path=("net", "head"), tensors=((1, 0, True),), numbers=(1, 2)), sent=(1, 2))
SHALLOW = Cut(
    "net", border=Border(path=("pad", "net"), tensors=((1, 0, True),), numbers=(1, 1)), sent=(1, 2), random=True
)


def test_rows_are_sorted_by_depth_and_deeper_clients_come_in_later():
    own = [SimpleNamespace(outputs=[], cut=cut) for cut in (DEEP, SHALLOW, SHALLOW)]
    frames = [frame(4), frame(2, generator=7), frame(3, generator=8)]
    frames[0].tensors[0] = torch.randn(4, 6)  # the deep cut's activation is of another shape
    del frames[0].tensors[-1]  # nothing behind it is random
    joint = join_by_depth(own, [0, 1, 2], frames, Mixture((SHALLOW, DEEP), ("head", "net", "head")))
    smashed, labels, mask, generator = joint.frame.tensors
    assert joint.clients == [1, 2, 0]
    assert torch.equal(smashed, torch.cat([frames[1].tensors[0], frames[2].tensors[0]]))
    assert labels.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]
    assert (mask.shape, generator.tolist()) == ((5, 5), [7] * 3)
    assert joint.frame.about["shapes"] == [[9, 7], [9], [5, 5], None]
    assert joint.frame.about["outputs"] == [[["float32", 5, 9], {"is": 1}], [["float32", 5, 4]]]
    gradient, advanced = torch.arange(5.0)[:, None], torch.full((3,), 99)
    divided = dict(joint.divided([gradient], [advanced]))
    assert {client: [x.flatten().tolist() for x in tensors] for client, tensors in divided.items()} == {
        1: [[0, 1], [99] * 3], 2: [[2, 3, 4], [8] * 3]
    }  # fmt: skip
    sent = {}
    (newcomers,) = joint.entering(lambda client, tensors: sent.update({client: tensors}))
    assert newcomers.call == 1  # the module's first call ended before the shallow cut
    newcomers.send(torch.arange(4.0))
    assert [x.tolist() for x in sent[0]] == [[0, 1, 2, 3]]
