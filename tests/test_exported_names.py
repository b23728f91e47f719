from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (
            "lightning_edgesplit",
            "ClientFailedError ClientLostError ClientProfile EdgeSplitError EdgeSplitStrategy ImpossibleCutError"
            " InfeasibleError ServerProfile",
        ),
        ("lightning_edgesplit.splitting", "END Cut CutProfile Cuts default_folder find_cuts time_cuts"),
        (
            "lightning_edgesplit.scheduling",
            "ASFL ASFLCode ASFLThresholds ByRound Channel ClientProfile Corrections Costs CutCost EPSL ESFL EdgeSplit"
            " Exact FedAvg Fixed InfeasibleError Joint LatencyModel Overlapped POLICIES Plan Policy PolicyLike"
            " RandomCuts SequentialSplit ServerProfile Uniform for_round load_clients make_policy simulate with_fixed",
        ),
        (
            "lightning_edgesplit.monitoring",
            "cuts_figure cuts_rows cuts_table log_round plan_table print_plan print_round refused_table round_line"
            " round_metrics round_table round_text save_cuts save_timeline timeline_figure unwatch watch",
        ),
    ],
)
def test_what_users_import_is_there_and_nothing_else_is_promised(package, names):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(names.split())
    assert all(hasattr(module, name) for name in names.split())
