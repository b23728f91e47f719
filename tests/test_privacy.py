from __future__ import annotations

import pytest
import torch
from small import Deterministic, fit

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.runtime import link


class WideLabels(Deterministic):
    """Labels so large that their bytes turn up nowhere by chance."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0], batch[1] % 10), batch_idx)


@pytest.mark.parametrize(
    ("cut", "second"), [("net.0", None), ("net.3", None), ("end", None), ("net.0", "net.3"), ("net.1", "net.2")]
)
def test_raw_inputs_stay_on_the_client_and_labels_go_only_where_they_are_needed(cut, second, monkeypatch, tmp_path):
    encode = link.encode

    def listening(frame):
        messages = encode(frame)
        with (tmp_path / "wire.bin").open("ab") as file:  # the clients are forked, so that they are listened to as well
            for message in messages:
                file.write(message)
        return messages

    monkeypatch.setattr(link, "encode", listening)
    inputs, labels = torch.randn(32, 12), torch.randint(2**40, 2**41, (32,))
    module = WideLabels()
    data = torch.utils.data.TensorDataset(inputs, labels)
    strategy = EdgeSplitStrategy(clients=2, cuts=cut, second_cut=second, timeout=30)
    fit(module, data, strategy, batch_size=8, epochs=1)

    heard = (tmp_path / "wire.bin").read_bytes()
    pieces = [row[at : at + 3].numpy().tobytes() for row in inputs for at in range(0, 12, 3)]
    assert not [piece for piece in pieces if piece in heard]
    found = [label for label in labels if label.numpy().tobytes() in heard]
    assert len(found) == (0 if cut == "end" or second else len(labels))  # so the listening works
    weights = module.state_dict()["net.0.weight"].numpy().tobytes()
    assert len(heard) > len(weights)
