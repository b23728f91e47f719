from __future__ import annotations

import pytest
from scheduling_samples import instance

from lightning_edgesplit.scheduling import Costs


def test_costs_come_back_from_their_file(tmp_path):
    costs, _, _ = instance(0)
    costs.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == costs


@pytest.mark.parametrize("text", ["[]", "{}", '{"version": 2}', '{"version": 1, "cuts": [{"name": "a"}]}', "x"])
def test_a_file_that_holds_something_else_is_refused(text, tmp_path):
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(ValueError, match=r"costs.json holds no costs"):
        Costs.load(tmp_path / "costs.json")
