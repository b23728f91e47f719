from __future__ import annotations

from lightning_edgesplit.scheduling import Corrections

PREDICTED = [{"compute": 1.0, "uplink": 2.0, "downlink": 1.0, "server": 0.5}] * 2


def test_what_differs_by_less_than_the_threshold_changes_nothing():
    measured = [{"compute": 1.2, "uplink": 1.6, "downlink": 1.0, "server": 0.6}] * 2
    start = Corrections.none(2)
    assert start.update(PREDICTED, measured) == start


def test_what_differs_by_more_becomes_that_clients_factor():
    measured = [{"compute": 3.0, "uplink": 2.0}, {"compute": 1.0, "uplink": 0.5}]
    learnt = Corrections.none(2).update(PREDICTED, measured)
    assert (learnt.compute, learnt.uplink, learnt.server) == ((3.0, 1.0), (1.0, 0.25), (1.0, 1.0))
    again = learnt.update(PREDICTED, [{"compute": 3.3, "uplink": 2.0}, {"compute": 1.0, "uplink": 0.55}])
    assert again == learnt  # 10 % from the factor in force


def test_nothing_is_concluded_from_times_too_short_to_measure():
    assert Corrections.none(2).update(PREDICTED, [{"server": 1e-5}] * 2) == Corrections.none(2)
