from __future__ import annotations

import pytest
from small import Classifier, fit, vectors

from lightning_edgesplit import EdgeSplitStrategy, ImpossibleCutError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "clients=0"),
        ({"clients": 2, "cuts": ["net.0"]}, "names 1 cuts for 2 clients"),
        ({"round_steps": 0}, "round_steps=0"),
        ({"partition": "shards"}, "partition='shards'"),
        ({"timeout": 0}, "timeout=0"),
    ],
)
def test_wrong_arguments_are_refused_with_option_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        EdgeSplitStrategy(**options)


def test_what_cannot_be_is_refused_before_any_process_starts():
    with pytest.raises(ImpossibleCutError, match="no such cut"):
        fit(Classifier(), vectors(32), EdgeSplitStrategy(clients=2, cuts="net.9"))
    with pytest.raises(ValueError, match="clients=9 for 4 training samples"):
        fit(Classifier(), vectors(4), EdgeSplitStrategy(clients=9, cuts="net.0"))
    with pytest.raises(ValueError, match="accumulate_grad_batches"):
        fit(Classifier(), vectors(32), EdgeSplitStrategy(clients=2, cuts="net.0"), accumulate_grad_batches=2)
