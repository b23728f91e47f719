from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting import END, find_cuts


class Classifier(L.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return loss


def images_and_labels(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 3, size, size), torch.randint(0, 10, (4,))


# models whose proofs take long are proven at some of their cuts: the mechanism is the same at each
FAMILIES = {
    "resnet18": ({}, None, ["conv1", "maxpool", "layer1.0", "layer4", "avgpool"]),
    "vgg11_bn": ({}, ("features.2", "classifier.2"), ["features.2", "classifier.2"]),
    "vit_b_16": ({"image_size": 32}, ("encoder_layer_0", "encoder_layer_11"), ["encoder.layers.encoder_layer_0"]),
    "convnext_tiny": ({}, ("features.0", "features.1", "features.5"), ["features.1", "features.5"]),
    "densenet121": ({}, ("pool0", "transition1", "transition3"), ["features.transition1"]),
    "mobilenet_v3_small": ({}, ("features.0", "features.4", "features.12"), ["features.4"]),
    "swin_t": ({}, ("features.0", "features.1", "features.5"), ["features.1"]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_families_have_proven_cuts(name):
    options, ends, expected = FAMILIES[name]
    module = Classifier(getattr(torchvision.models, name)(num_classes=10, weights=None, **options))
    cuts = find_cuts(module, images_and_labels(), only=None if ends is None else lambda cut: cut.endswith(ends))
    assert all(cut.error <= 1e-5 for cut in cuts)
    for cut in expected:
        found = cuts.find(cut)
        assert found.private == (0,), "the images stay"
        assert found.sent == (1,), "the labels go"
    assert cuts[-1].name == END


def test_a_cut_through_a_residual_block_is_a_set_of_tensors_and_proven_when_it_is_asked_for():
    module = Classifier(torchvision.models.resnet18(num_classes=10))
    cuts = find_cuts(module, images_and_labels())
    with pytest.raises(ImpossibleCutError, match=r"layer1\.0\.conv1.*2 tensors cross.*Choose from net\.conv1"):
        cuts.find("layer1.0.conv1")
    asked = find_cuts(module, images_and_labels(), only=lambda name: name.endswith("layer1.0.conv1"))
    found = asked.find("layer1.0.conv1")
    assert len(found.border.tensors) == 2
    assert found.profile.gradient_bytes == 2 * cuts.find("maxpool").profile.gradient_bytes
    with pytest.raises(ImpossibleCutError, match="no such cut"):
        cuts.find("layer9")


def test_neither_module_nor_generator_is_changed():
    module = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 10))
    )
    batch = images_and_labels(2)
    before, generator = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    find_cuts(module, batch)
    assert torch.equal(generator, torch.get_rng_state())
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in module.parameters())


def test_random_layers_behind_a_cut_are_noticed():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 10))
    cuts = find_cuts(Classifier(net), images_and_labels(2))
    assert cuts.find("net.2").random
    assert not cuts.find("net.3").random


class Tied(Classifier):
    def training_step(self, batch, batch_idx):
        images, labels = batch
        hidden = self.net[1](self.net[0](images.flatten(1)))
        return F.cross_entropy(hidden @ self.net[0].weight[:, :10], labels)


def test_tied_weights_are_the_clients_and_travel_with_each_step():
    cuts = find_cuts(Tied(nn.Sequential(nn.Linear(12, 12), nn.ReLU())), images_and_labels(2))
    found = cuts.find("net.1")
    assert found.tied == ("net.0.weight",)
    assert found.profile.tied_bytes == 4 * 12 * 12


class Autoencoder(Classifier):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0].flatten(1)), batch[0].flatten(1))


def test_a_cut_behind_which_the_raw_input_is_needed_is_refused():
    cuts = find_cuts(Autoencoder(nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 12))), images_and_labels(2))
    assert [cut.name for cut in cuts] == [END]
    assert "raw inputs stay on the client" in cuts.refused["net.0"]


class Silent(Classifier):
    """Adds to a real tensor behind the cut what only the client has, in place: torch accepts real.add_(meta)."""

    def training_step(self, batch, batch_idx):
        images, labels = batch
        hidden = self.net[0](images.flatten(1))
        logits = self.net[1](hidden)
        self.kept = hidden.detach()
        return F.cross_entropy(logits.add_(self.kept.mean()), labels)


def test_what_only_the_client_has_is_not_mixed_in_silently():
    cuts = find_cuts(Silent(nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 10))), images_and_labels(2))
    assert len(cuts.find("net.0").border.tensors) == 1, "what is recomputed from the smashed data itself is allowed"
    assert len(cuts.find("net.1").border.tensors) == 2, "what is kept of net.0 must cross as well"


def test_what_has_to_stay_may_be_named():
    module = Autoencoder(nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 12)))
    cuts = find_cuts(module, images_and_labels(2), private=())
    assert cuts.find("net.0").sent == (0,)
    with pytest.raises(ValueError, match=r"private='image' names nothing in the batch: its leaves are 0, 1"):
        find_cuts(module, images_and_labels(2), private=["image"])
    refused = find_cuts(module, images_and_labels(2), private=["0"]).refused
    assert "batch leaf 0 is needed behind it, and is private" in refused["net.0"]


class Texts(Classifier):
    """Needs a text of the batch behind the cut."""

    def training_step(self, batch, batch_idx):
        hidden = self.net(batch["x"].flatten(1))
        return F.cross_entropy(hidden, batch["y"]) * (2.0 if batch["kind"] == "hard" else 1.0)


def test_what_is_no_tensor_stays_unless_private_says_otherwise():
    images, labels = images_and_labels(2)
    batch = {"x": images, "y": labels, "kind": "hard", "ids": ["a", "b", "c", "d"]}
    module = Texts(nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 10)))
    assert "'kind' is needed behind the cut" in find_cuts(module, batch).refused["net.0"]
    assert find_cuts(module, batch, private=["x", "ids"]).find("net.0").sent == (1, 2)


def test_costs_of_a_cut_are_those_counted_by_hand():
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10))
    module = Classifier(nn.Sequential(nn.Flatten(), net))
    optimizer = torch.optim.Adam(module.parameters())
    profile = find_cuts(module, images_and_labels(2), optimizer).find("net.1.0").profile
    assert profile.client_forward == 2 * 12 * 8
    assert profile.client_backward == 2 * 12 * 8, "no gradient of the input"
    assert profile.server_forward == 2 * 8 * 10
    assert profile.server_backward == 2 * (2 * 8 * 10)
    assert profile.smashed_bytes == 8 * 4 + 8, "eight floats and one int64 label"
    assert profile.gradient_bytes == 8 * 4
    assert profile.weight_bytes == profile.parameter_bytes == 4 * (12 * 8 + 8)
    assert profile.optimizer_bytes == 2 * profile.weight_bytes + 2 * 4, "two moments, and a step count per tensor"


def test_a_step_without_a_loss_is_a_clear_error():
    class NoLoss(Classifier):
        def training_step(self, batch, batch_idx):
            return {"logits": self.net(batch[0])}

    with pytest.raises(TypeError, match="without a loss"):
        find_cuts(NoLoss(nn.Flatten()), images_and_labels(2))
