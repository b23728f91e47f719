from __future__ import annotations

import copy

import pytest
import torch
from small import Classifier, fit, vectors

from lightning_edgesplit import ClientFailedError, EdgeSplitStrategy


class Failing(Classifier):
    def on_train_start(self):
        self.on_server = True

    def training_step(self, batch, batch_idx):
        if batch_idx == 1 and getattr(self, "on_server", False) == self.fails_on_server:
            raise RuntimeError("deliberate")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("on_server", "error"), [(False, ClientFailedError), (True, RuntimeError)])
def test_an_exception_on_either_side_is_raised_and_the_last_aggregate_kept(on_server, error):
    module = Failing()
    module.fails_on_server = on_server
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=r"deliberate" if on_server else r"client-\d failed: RuntimeError: deliberate"):
        fit(module, vectors(64), EdgeSplitStrategy(clients=2, cuts="net.2", timeout=30))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
