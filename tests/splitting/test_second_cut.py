"""A step that goes to the server and comes back: labels, the last layers and the loss stay with the client."""

from __future__ import annotations

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import torchvision
from second_cut_samples import Structured, Tied, UNet
from torch import nn

from lightning_edgesplit.splitting import END, find_cuts


class Classifier(L.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss


def vectors(size: int = 6):
    return torch.randn(size, 12), torch.randint(0, 10, (size,))


def pictures(size: int = 4):
    return torch.randn(size, 3, 32, 32), torch.randint(0, 10, (size,))


def words(size: int = 4):
    return torch.randint(0, 10, (size, 5)), torch.randint(0, 10, (size,))


MODELS = {
    "in-place behind both": (
        lambda: nn.Sequential(
            nn.Linear(12, 16), nn.ReLU(inplace=True), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 16),
            nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(16, 10),
        ),
        vectors, "net.4", ["net.0", "net.1", "net.2", "net.3"],
    ),
    "U-Net": (UNet, pictures, "up", ["net.down", "net.middle", "net.bottom"]),
    "outputs of any structure": (Structured, vectors, "encoder", ["net.front", "net.encoder.first"]),
    "tied": (Tied, words, "block", ["net.words", "net.block.0", "net.block.1"]),
    "resnet18": (
        lambda: torchvision.models.resnet18(num_classes=10), pictures, "layer4",
        ["net.conv1", "net.maxpool", "net.layer1", "net.layer3"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_step_that_comes_back_equals_the_uncut_one(name):
    make, batch, second, expected = MODELS[name]
    module = Classifier(make())
    cuts = find_cuts(module, batch(), torch.optim.SGD(module.parameters(), 0.1), second_cut=second)
    assert {cut.name for cut in cuts} >= {*expected, END}, cuts.refused
    for cut in cuts[:-1]:
        assert cut.error <= (1e-4 if cut.direct else 1e-5)  # where both passes cross a layer, two gradients are summed
        assert cut.sent == (), "neither inputs nor labels leave the client"
        assert cut.back is not None
        assert cut.profile.head > 0


def test_what_is_on_the_client_is_what_it_runs():
    module = Classifier(MODELS["in-place behind both"][0]())
    cut = find_cuts(module, vectors(), second_cut="net.4").find("net.0")
    assert set(cut.client) == {"net.0.weight", "net.0.bias", "net.7.weight", "net.7.bias"}
    assert not cut.direct
    assert find_cuts(Classifier(UNet()), pictures(), second_cut="up").find("down").direct
    tied = find_cuts(Classifier(Tied()), words(), second_cut="block").find("words")
    assert tied.tied == (), "both ends of the tie are the client's"


def test_flop_of_both_sides_and_of_the_head_are_those_of_the_uncut_step():
    module = Classifier(torchvision.models.resnet18(num_classes=10))
    cuts = find_cuts(module, pictures(), second_cut="avgpool")
    whole = cuts[-1].profile
    for cut in cuts[:-1]:
        p = cut.profile
        forward_and_backward = p.client_forward + p.client_backward + p.server_forward + p.server_backward + p.head
        assert forward_and_backward == pytest.approx(whole.client_forward + whole.client_backward)
        assert p.returned_bytes == p.returned_gradient_bytes == 512 * 4
    assert cuts[0].profile.head == pytest.approx(3 * 2 * 512 * 10), "the last layer, forward and both gradients"


def test_a_second_cut_that_is_none_is_refused():
    module = Classifier(MODELS["in-place behind both"][0]())
    with pytest.raises(ValueError, match=r"second_cut='net\.9' names no module.*choose from net\.0"):
        find_cuts(module, vectors(), second_cut="net.9")
    cuts = find_cuts(module, vectors(), second_cut="net.4")
    assert cuts.refused["net.5"] == "it does not come before the second cut"

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x):
            return self.second(self.first(x)) * 2

    wrapped = Classifier(nn.Sequential(Inside(), nn.Linear(12, 10)))
    reason = find_cuts(wrapped, vectors(), second_cut="net.0").refused["net.0.first"]
    assert "lies inside the second cut 'net.0'" in reason


def test_what_only_the_server_has_rules_a_cut_out():
    class Kept(nn.Module):
        """A result inside a module between the cuts is used behind the second one."""

        def __init__(self):
            super().__init__()
            self.front, self.block, self.head = (
                nn.Linear(12, 12),
                nn.ModuleDict({"a": nn.Linear(12, 12)}),
                nn.Linear(12, 10),
            )
            self.scale = nn.Parameter(torch.ones(12))

        def forward(self, x):
            return self.head(self.block["a"](self.front(x) * self.scale)) + self.scale.sum()

    cuts = find_cuts(Classifier(Kept()), vectors(), second_cut="a")
    assert cuts.find("front").tied == ("net.scale",)

    class Stays(Kept):
        def forward(self, x):
            scaled = self.front(x) * self.scale
            return self.head(self.block["a"](scaled) + scaled)

    refused = find_cuts(Classifier(Stays()), vectors(), second_cut="a").refused
    assert "net.scale is the server's" in refused["net.front"]
