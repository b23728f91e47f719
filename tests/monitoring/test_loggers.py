from __future__ import annotations

import csv
from dataclasses import replace

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from monitoring_samples import sample_report

from lightning_edgesplit.monitoring import log_round


def test_tensorboard_gets_numbers_cuts_and_the_timeline(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger, report = TensorBoardLogger(tmp_path), sample_report()
    log_round([logger], report, step=24, depths={"layer1": 3})
    logger.experiment.close()
    events = event_accumulator.EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Scalars("round/seconds")[0].value == pytest.approx(report.seconds)
    assert events.Scalars("round/seconds")[0].step == 24
    for client in report.clients:
        for phase, seconds in client.seconds.items():
            assert events.Scalars(f"client/{client.name}/seconds/{phase}")[0].value == pytest.approx(seconds)
        assert events.Scalars(f"client/{client.name}/share")[0].value == pytest.approx(client.share)
        assert events.Scalars(f"client/{client.name}/idle")[0].value == pytest.approx(client.idle)
    assert events.Scalars("client/raspberry-pi-4/cut_depth")[0].value == 3
    assert events.Tensors("client/jetson-nano/cut/text_summary")[0].tensor_proto.string_val == [b"layer2"]
    assert events.Images("round/timeline")[0].width > 500


def test_any_logger_gets_the_numbers(tmp_path):
    logger, report = CSVLogger(tmp_path), sample_report()
    report = replace(report, clients=(report.clients[0], replace(report.clients[1], batch=12, weight_error=0.01)))
    log_round([logger], report, step=24)
    logger.save()
    with open(f"{logger.log_dir}/metrics.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["round/predicted"]) == pytest.approx(report.predicted)
    assert float(row["client/jetson-nano/bytes_up"]) == report.clients[1].bytes_up
    assert float(row["client/jetson-nano/batch"]) == 12
    assert float(row["client/jetson-nano/weight_error"]) == 0.01
    assert "client/raspberry-pi-4/batch" not in row, "its batch is its loader's"
    assert "client/raspberry-pi-4/weight_error" not in row, "its weights have all of their bits"
