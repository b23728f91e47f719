"""Callbacks, loggers, loaders and the rest of what a Trainer does around the training step."""

from __future__ import annotations

import copy
import warnings

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as cb
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel, DemoModel, RandomDataset
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.tuner import Tuner
from rows import feature
from small import Classifier, Deterministic, WithAdamW, fedavg, vectors
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from lightning_edgesplit import EdgeSplitStrategy, ImpossibleCutError
from lightning_edgesplit.options import check_trainer
from lightning_edgesplit.scheduling import Fixed

QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
    "log_every_n_steps": 1,
}


def split(cut: str = "net.2", clients: int = 1, **options) -> EdgeSplitStrategy:
    return EdgeSplitStrategy(clients=clients, cuts=cut, timeout=30, **options)


class Validated(WithAdamW):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


def data(samples: int = 48, **options) -> DataLoader:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return DataLoader(vectors(samples), batch_size=8, **options)


def fit(module, strategy, epochs=2, val=False, **options):
    trainer = L.Trainer(strategy=strategy, max_epochs=epochs, **{**QUIET, "enable_checkpointing": False, **options})
    torch.manual_seed(2)
    trainer.fit(module, data(), data() if val else None)
    return trainer


def both(make, cut="net.2", callbacks=lambda: [], **options):
    """Plain and split: modules and trainers, weights compared."""
    torch.manual_seed(3)
    plain = make()
    other = copy.deepcopy(plain)
    expected = fit(plain, "auto", callbacks=callbacks(), **options)
    actual = fit(other, split(cut), callbacks=callbacks(), **options)
    torch.testing.assert_close(other.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
    return expected, actual


@feature("`fit`, `validate`, `test`, `predict`", how="all but `fit` run on the server alone")
def test_evaluation():
    expected, actual = both(Validated, val=True)
    torch.testing.assert_close(actual.callback_metrics, expected.callback_metrics)
    for trainer in (expected, actual):
        module = trainer.lightning_module
        results = [run(module, data(), verbose=False)[0] for run in (trainer.validate, trainer.test)]
        trainer.results = {**results[0], **results[1]}
        trainer.predicted = torch.cat(trainer.predict(module, data()))
    assert actual.results == pytest.approx(expected.results)
    torch.testing.assert_close(actual.predicted, expected.predicted)


@feature("ModelCheckpoint, EarlyStopping, LearningRateMonitor, Timer", how="on the server, with the aggregated model")
def test_callbacks_that_watch(tmp_path):
    def watching():
        return [
            cb.ModelCheckpoint(tmp_path / str(len(list(tmp_path.iterdir()))), monitor="val_loss", filename="best"),
            cb.EarlyStopping("val_loss", patience=0, min_delta=10),
            cb.LearningRateMonitor("epoch"),
            cb.Timer(duration="00:01:00:00"),
        ]

    logger = {"logger": CSVLogger(tmp_path), "enable_checkpointing": True}
    expected, actual = both(Validated, callbacks=watching, val=True, epochs=5, **logger)
    assert actual.current_epoch == expected.current_epoch == 2, "stopped early"
    best = [t.checkpoint_callback.best_model_score for t in (expected, actual)]
    torch.testing.assert_close(best[1], best[0])
    loaded = torch.load(actual.checkpoint_callback.best_model_path, weights_only=True)
    assert "net.0.weight" in loaded["state_dict"]


@feature("RichProgressBar, TQDM, ModelSummary, DeviceStatsMonitor, profilers")
@pytest.mark.parametrize("bar", [cb.RichProgressBar, cb.TQDMProgressBar])
def test_callbacks_that_show(bar, tmp_path, capsys, monkeypatch):
    pytest.importorskip("psutil")
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # else a thread of its own stays
    trainer = fit(
        Classifier(), split(), callbacks=[bar(), cb.ModelSummary(), cb.DeviceStatsMonitor(cpu_stats=True)],
        logger=CSVLogger(tmp_path), profiler="simple", enable_progress_bar=True, enable_model_summary=True,
    )  # fmt: skip
    assert "Epoch 1" in capsys.readouterr().out
    written = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "cpu_percent" in written
    assert trainer.profiler.recorded_durations["[Strategy]EdgeSplitStrategy.training_step"]


@feature("several loggers (TensorBoard, CSV), `self.log` of all kinds on either side")
def test_several_loggers(tmp_path):
    class Logging(Classifier):
        def training_step(self, batch, batch_idx):
            hidden = self.net[1](self.net[0](batch[0]))
            self.log("before", hidden.mean(), on_step=True, on_epoch=True, prog_bar=True)
            self.log_dict({"also/before": hidden.std(), "number": 3})
            loss = torch.nn.functional.cross_entropy(self.net[2:](hidden), batch[1])
            self.log_dict({"behind": loss, "also/behind": loss * 2}, on_step=False, on_epoch=True)
            return loss

    loggers = [TensorBoardLogger(tmp_path), CSVLogger(tmp_path)]
    expected, actual = both(Logging, cut="net.1", logger=loggers)
    assert actual.callback_metrics.keys() == expected.callback_metrics.keys()
    torch.testing.assert_close(actual.callback_metrics, expected.callback_metrics)


@feature("torchmetrics", how="metrics behind the cut, or in validation")
def test_torchmetrics():
    import torchmetrics

    class Measured(Classifier):
        def __init__(self):
            super().__init__()
            self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)

        def training_step(self, batch, batch_idx):
            logits = self.net(batch[0])
            self.accuracy(logits, batch[1])
            self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
            return torch.nn.functional.cross_entropy(logits, batch[1])

    expected, actual = both(Measured)
    torch.testing.assert_close(actual.callback_metrics, expected.callback_metrics)


@feature("frozen layers", how="stay frozen; so do modules in eval mode")
def test_frozen_layers():
    class Frozen(Classifier):
        def __init__(self):
            super().__init__()
            self.net[0].requires_grad_(False)

    both(Frozen, cut="net.2")


class WithBackbone(Deterministic):
    """Two parts, of which the optimizer knows only what is trained at first; batch norm always is."""

    make_optimizer = staticmethod(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))

    def __init__(self):
        super().__init__()
        self.backbone, self.net = self.net[:3], self.net[3:]

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self):
        return self.make_optimizer([p for p in self.parameters() if p.requires_grad])


class WithBackboneAndAdamW(WithBackbone):
    make_optimizer = staticmethod(lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-4))  # gradients of 0 stay small


class WithFrozenNorms(cb.BackboneFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone, train_bn=False)


def thawing(kind=cb.BackboneFinetuning):
    return [kind(1, lambda epoch: 1.5, backbone_initial_ratio_lr=0.5)]


BATCH_NORM_IS_TRAINED_ALREADY = pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
THAWING = "BaseFinetuning, BackboneFinetuning: freezing and thawing while it runs"


@feature(THAWING, how="at the start of a round: cuts are proven anew; within a round: refused")
@BATCH_NORM_IS_TRAINED_ALREADY
@pytest.mark.parametrize("cut", ["backbone.1", "net.3", "end"])
@pytest.mark.parametrize("kind", [WithBackbone, WithBackboneAndAdamW])
def test_a_backbone_thaws(kind, cut):
    expected, actual = both(kind, cut, callbacks=thawing, epochs=4)
    groups = [trainer.optimizers[0].param_groups for trainer in (expected, actual)]
    assert [group["lr"] for group in groups[0]] == [group["lr"] for group in groups[1]]
    assert len(groups[1]) == 2


@BATCH_NORM_IS_TRAINED_ALREADY
@pytest.mark.parametrize("kind", [WithBackbone, WithBackboneAndAdamW])
def test_a_backbone_that_thaws_is_averaged_over_two_clients(kind):
    torch.manual_seed(3)
    module, parts = kind(), [list(range(0, 32)), list(range(32, 48))]
    cb.BackboneFinetuning.freeze(module.backbone)
    clients = [copy.deepcopy(module) for _ in parts]
    optimizers = [client.configure_optimizers() for client in clients]
    tensors = data().dataset.tensors
    rate = optimizers[0].param_groups[0]["lr"] / 2
    for epoch in range(4):  # the oracle: a plain loop that thaws as BackboneFinetuning does
        rate = rate * 1.5 if epoch > 1 else rate
        for client, optimizer, part in zip(clients, optimizers, parts, strict=True):
            if epoch == 1:
                cold = [p for p in client.backbone.parameters() if not p.requires_grad]
                for p in cold:
                    p.requires_grad = True
                optimizer.add_param_group({"params": cold, "lr": rate})
            if epoch > 1:
                optimizer.param_groups[-1]["lr"] = min(rate, optimizer.param_groups[0]["lr"])
            for batch in torch.tensor(part).split(8):
                optimizer.zero_grad()
                client.training_step([tensors[0][batch], tensors[1][batch]], 0).backward()
                optimizer.step()
        states = [client.state_dict() for client in clients]
        mean = {name: states[0][name] * (2 / 3) + states[1][name] / 3 for name in states[0]}
        mean = {k: v if states[0][k].is_floating_point() else v.round().long() for k, v in mean.items()}
        for client in clients:
            client.load_state_dict(mean)
    torch.manual_seed(3)
    other = kind()
    strategy = split(["backbone.1", "net.3"], clients=2, partition=parts)
    fit(other, strategy, callbacks=thawing(), epochs=4)
    torch.testing.assert_close(other.state_dict(), clients[0].state_dict(), rtol=1e-5, atol=1e-6)


def test_norms_that_thaw_count_again_and_modules_put_to_rest_rest():
    class Resting(cb.Callback):
        def on_train_epoch_start(self, trainer, module):
            module.backbone[1].train(trainer.current_epoch != 2)

    class Ahead(WithBackbone):
        def __init__(self):
            super().__init__()
            self.ahead = torch.nn.Linear(12, 12)

        def training_step(self, batch, batch_idx):
            return super().training_step([self.ahead(batch[0]), batch[1]], batch_idx)

    both(Ahead, "backbone.1", callbacks=lambda: [*thawing(WithFrozenNorms), Resting()], epochs=4)


def test_policies_take_other_cuts_when_a_named_one_is_frozen():
    class Freeze(cb.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                module.net[0].requires_grad_(False)
                module.net[1].requires_grad_(False)

    with pytest.raises(ImpossibleCutError, match=r"before round 1 .*net\.2.*nothing before it is trained"):
        fit(Deterministic(), split("net.2"), callbacks=[Freeze()])
    strategy = EdgeSplitStrategy(clients=1, policy=Shallowest(), timeout=30)
    plain, module = Deterministic(), Deterministic()
    module.load_state_dict(plain.state_dict())
    for model, chosen in ((plain, "auto"), (module, strategy)):
        fit(model, chosen, callbacks=[Freeze()], epochs=3)
    assert [report.clients[0].cut for report in strategy.rounds] == ["net.0", "net.3", "net.3"]
    torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


class Shallowest:
    """The first cut that there is."""

    name = "first"

    def plan(self, costs, clients, server, corrections=None):
        return Fixed((costs.cuts[0].name,) * len(clients)).plan(costs, clients, server, corrections)


def test_freezing_within_a_round_is_refused():
    class Freeze(cb.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            module.net[0].requires_grad_(False)

    with pytest.raises(ValueError, match="within a round"):
        fit(Deterministic(), split(), callbacks=[Freeze()])


class WithLayersAlone(WithAdamW):
    def __init__(self):
        super().__init__(torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10)))


SWA = "StochasticWeightAveraging"


@feature(SWA + " without batch norm")
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
def test_swa():
    both(WithLayersAlone, "net.0", callbacks=lambda: [cb.StochasticWeightAveraging(0.05, 2)], epochs=5)


@feature(SWA + " with batch norm", "refused", "it passes over the data once more without steps: use WeightAveraging")
def test_swa_with_batch_norm_is_refused():
    with pytest.raises(ValueError, match=r"StochasticWeightAveraging.*batch norm"):
        fit(Classifier(), split(), callbacks=[cb.StochasticWeightAveraging(0.01)])


class PerEpoch(getattr(cb, "WeightAveraging", cb.Callback)):
    def should_update(self, step_idx=None, epoch_idx=None):
        return epoch_idx is not None


@feature(
    "WeightAveraging, EMAWeightAveraging",
    how="average what the Trainer has: the last aggregate; per step as in plain training with `round_steps=1`",
)
@pytest.mark.skipif(not hasattr(cb, "WeightAveraging"), reason="came with lightning 2.6")
@pytest.mark.parametrize("per_step", [False, True])
def test_averaged_weights(per_step):
    def averaging():
        return [cb.EMAWeightAveraging(decay=0.8) if per_step else PerEpoch()]

    torch.manual_seed(3)
    plain = Validated()
    other = copy.deepcopy(plain)
    expected = fit(plain, "auto", callbacks=averaging(), epochs=3, val=True)
    actual = fit(other, split(round_steps=1 if per_step else None), callbacks=averaging(), epochs=3, val=True)
    torch.testing.assert_close(other.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual.callback_metrics, expected.callback_metrics)
    torch.manual_seed(3)
    unaveraged = Validated()
    fit(unaveraged, "auto", epochs=3, val=True)
    assert not torch.allclose(unaveraged.net[0].weight, plain.net[0].weight)


@feature("GradientAccumulationScheduler", how="`round_steps` is a multiple of every factor")
@pytest.mark.parametrize("cut", ["net.2", "end"])
def test_accumulation_that_changes(cut):
    def scheduled():
        return [cb.GradientAccumulationScheduler({0: 2, 1: 1, 2: 4})]

    expected, actual = both(Classifier, cut, callbacks=scheduled, epochs=4, gradient_clip_val=0.5)
    assert actual.global_step == expected.global_step
    with pytest.raises(ValueError, match=r"accumulate_grad_batches.*round_steps"):
        fit(Classifier(), split(cut, round_steps=2), callbacks=scheduled())


@feature("`max_time`", how="ends at the limit; the mean of what there is, is in the module")
def test_a_run_that_is_out_of_time():
    expected, actual = both(WithAdamW, max_time={"microseconds": 1}, epochs=-1)
    assert actual.global_step == expected.global_step == 1


@feature("`precision` 16-mixed", how="is Lightning's bf16-mixed on a CPU")
def test_16_mixed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, actual = both(Classifier, precision="16-mixed")
    assert actual.precision == "bf16-mixed"


@feature("the name space `pytorch_lightning`", "refused", "`import lightning.pytorch as pl`")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pytorch_lightning_is_refused():
    other = pytest.importorskip("pytorch_lightning")
    with pytest.raises(ValueError, match=r"EdgeSplitStrategy of 1 clients.*import lightning\.pytorch as pl"):
        other.Trainer(strategy=split(), **QUIET)
    from pytorch_lightning.demos.boring_classes import BoringModel as OtherModel

    with pytest.raises(TypeError, match="single import style"):
        fit(OtherModel(), split("layer"))


@feature("BatchSizeFinder, Tuner", "refused", "tune with the plain Trainer, then train split")
def test_tuners_are_refused():
    trainer = L.Trainer(strategy=split(), max_epochs=1, **QUIET)
    with pytest.raises(ValueError, match="tune with the plain Trainer"):
        Tuner(trainer).lr_find(Classifier(), data())
    with pytest.raises((ValueError, MisconfigurationException), match=r"tune with the plain Trainer|Batch size finder"):
        fit(Classifier(), split(), callbacks=[cb.BatchSizeFinder()])


@feature("`reload_dataloaders_every_n_epochs`", "refused", "let the dataset change what it yields")
@feature("manual optimization, several optimizers", "refused", "one optimizer, with groups")
@feature("`configure_gradient_clipping` of your own", "refused", "use `gradient_clip_val`")
def test_refusals():
    class Manual(Classifier):
        automatic_optimization = False

    class Clipping(Classifier):
        def configure_gradient_clipping(self, *args, **kwargs):
            return None

    class TwoOptimizers(Classifier):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[0].parameters(), 0.1), torch.optim.SGD(self.net[4].parameters(), 0.1)]

        automatic_optimization = False

    cases = [
        (Classifier, {"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders"),
        (Manual, {}, "automatic_optimization"),
        (TwoOptimizers, {}, "automatic_optimization"),
        (Clipping, {}, "configure_gradient_clipping"),
    ]
    for make, options, what in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=what):
                fit(make(), split(), **options)


@feature("`val_check_interval`, `check_val_every_n_epoch`, `num_sanity_val_steps`, `limit_val_batches`")
@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 0.5},
        {"val_check_interval": 2},
        {"check_val_every_n_epoch": 2},
        {"num_sanity_val_steps": 1},
    ],
    ids=str,
)
def test_when_to_validate(options):
    seen = []

    class Counting(Validated):
        def __init__(self):
            super().__init__(Deterministic().net)  # in mid-round, server and client draw from streams of their own

        def on_validation_epoch_start(self):
            seen.append((self.trainer.current_epoch, self.trainer.global_step, self.trainer.sanity_checking))

    both(Counting, val=True, limit_val_batches=1, **options)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


@feature("hooks of module and callbacks", how="on the server, in the plain order; around batch transfer: on the client")
def test_hooks_run_in_the_plain_order():
    names = [
        "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad",
        "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end",
        "on_train_epoch_end", "on_train_end", "on_fit_end",
    ]  # fmt: skip
    orders = []
    for strategy in ("auto", split()):
        order: list[str] = []
        callback = cb.Callback()
        for name in names:
            setattr(callback, name, lambda *args, name=name, order=order, **kwargs: order.append(name))
        fit(Classifier(), strategy, callbacks=[callback])
        orders.append(order)
    assert orders[0] == orders[1]


@feature("two `fit`s with one Trainer, two Trainers in one process")
def test_two_fits():
    module, trainer = Deterministic(), L.Trainer(strategy=split(), max_epochs=1, enable_checkpointing=False, **QUIET)
    plain = copy.deepcopy(module)
    expected = L.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    for one, model in ((trainer, module), (expected, plain)):
        torch.manual_seed(2)
        one.fit(model, data())
        one.fit_loop.max_epochs = 2
        one.fit(model, data())
    torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


@feature("a GPU on the server", "refused", 'use `accelerator="cpu"`')
def test_a_gpu_is_refused():
    strategy = split()
    trainer = L.Trainer(strategy=strategy, enable_checkpointing=False, **QUIET)
    strategy.accelerator = CUDAAccelerator()  # as on a machine that has one
    with pytest.raises(ValueError, match=r"`accelerator` as given does not work.*use accelerator=.cpu."):
        check_trainer(trainer, strategy)


@feature("LightningDataModule, workers")
def test_datamodule_with_workers():
    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return data(num_workers=1, multiprocessing_context="fork")

    module = Classifier()
    plain = copy.deepcopy(module)
    for model, strategy in ((module, split()), (plain, "auto")):
        trainer = L.Trainer(strategy=strategy, max_epochs=1, enable_checkpointing=False, **QUIET)
        torch.manual_seed(2)
        trainer.fit(model, datamodule=Data())
    torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


class Stream(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(4)
        while True:
            yield torch.randn(12, generator=generator), torch.randint(0, 10, (), generator=generator)


@feature(
    "iterable datasets, samplers of any kind",
    how="one loader per client, or `partition=None`; streams with `limit_train_batches`",
)
def test_streams_and_samplers():
    weights = WeightedRandomSampler([1.0] * 24 + [5.0] * 24, 32, generator=torch.Generator().manual_seed(3))
    for loader in (DataLoader(Stream(), batch_size=8), data(sampler=weights)):
        module = Classifier()
        plain = copy.deepcopy(module)
        for model, strategy in ((plain, "auto"), (module, split(partition=None))):
            if isinstance(loader.dataset, Stream) is False:
                weights.generator.manual_seed(3)
            trainer = L.Trainer(
                strategy=strategy, max_epochs=2, limit_train_batches=3, enable_checkpointing=False, **QUIET
            )
            torch.manual_seed(2)
            trainer.fit(model, loader)
        torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


@feature("`participation` below 1", how="drawn by the seed; those drawn are averaged")
def test_sampled_clients_are_averaged():
    module, parts = Deterministic(), [list(range(0, 24)), list(range(24, 40)), list(range(40, 48))]
    first = copy.deepcopy(module)
    strategy = split("net.2", clients=3, partition=parts, participation=0.6)
    trainer = L.Trainer(strategy=strategy, max_epochs=6, enable_checkpointing=False, **QUIET)
    trainer.fit(module, data())
    sampled = [[client.client for client in report.clients] for report in strategy.rounds]
    assert all(len(clients) == 2 for clients in sampled)
    assert len({tuple(clients) for clients in sampled}) > 1
    again = split("net.2", clients=3, partition=parts, participation=0.6)
    other = copy.deepcopy(first)
    L.Trainer(strategy=again, max_epochs=6, enable_checkpointing=False, **QUIET).fit(other, data())
    torch.testing.assert_close(other.state_dict(), module.state_dict(), rtol=0, atol=0)
    # one round against the definition
    one = copy.deepcopy(first)
    strategy = split("net.2", clients=3, partition=parts, participation=0.6)
    L.Trainer(strategy=strategy, max_epochs=1, enable_checkpointing=False, **QUIET).fit(one, data())
    drawn = [parts[client.client] for client in strategy.rounds[0].clients]
    expected = fedavg(first, data().dataset, drawn, batch_size=8, epochs=1, steps=100)
    torch.testing.assert_close(one.state_dict(), expected, rtol=1e-5, atol=1e-6)


@feature("clients with unequal data, with one sample, with none", how="weights n_k / Σn")
def test_a_client_with_one_sample_and_one_with_none():
    class WithoutNorm(Classifier):
        def __init__(self):
            super().__init__(torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10)))

    module = WithoutNorm()
    parts = [list(range(0, 40)), [47], []]
    expected = fedavg(copy.deepcopy(module), data().dataset, parts[:2], batch_size=8, epochs=2, steps=100)
    trainer = L.Trainer(
        strategy=split("net.0", clients=3, partition=parts), max_epochs=2, enable_checkpointing=False, **QUIET
    )
    trainer.fit(module, data())
    torch.testing.assert_close(module.state_dict(), expected, rtol=1e-5, atol=1e-6)


@feature("LightningCLI", how="`--trainer.strategy=edgesplit`, or a class path with init args")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse, about what Lightning calls
@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.strategy=edgesplit"],
        [
            "--trainer.strategy=lightning_edgesplit.EdgeSplitStrategy", "--trainer.strategy.clients=2",
            "--trainer.strategy.cuts=layer",
        ],
    ],
    ids=["name", "class"],
)  # fmt: skip
def test_lightning_cli(arguments, monkeypatch):
    common = [
        "--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=1",
        "--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false",
        "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false", "--seed_everything=false",
        "--trainer.log_every_n_steps=1",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["train.py"])
    cli = LightningCLI(BoringModel, args=["fit", *common, *arguments], save_config_callback=None)
    assert isinstance(cli.trainer.strategy, EdgeSplitStrategy)
    assert cli.trainer.strategy.rounds


@feature("Lightning's demo modules")
@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize("make", [BoringModel, DemoModel])
def test_demo_modules(make, clients):
    module = make()
    plain = copy.deepcopy(module)
    trainers = []
    for model, strategy in ((plain, "auto"), (module, EdgeSplitStrategy(clients=clients, timeout=30))):
        trainer = L.Trainer(strategy=strategy, max_epochs=1, enable_checkpointing=False, **QUIET)
        torch.manual_seed(2)
        trainer.fit(model, DataLoader(RandomDataset(32, 64), batch_size=4))
        trainers.append(trainer)
    if clients == 1:
        torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
    assert trainers[1].strategy.rounds


@feature("`torch.compile`d modules", "refused", "compile nothing, or compile behind `fit`")
def test_compiled_modules_are_refused():
    module = Classifier()
    module.net = torch.compile(module.net, backend="eager")
    with pytest.raises(ValueError, match=r"torch\.compile"):
        fit(module, split())
    compiled = torch.compile(Classifier(), backend="eager")
    with pytest.raises(ValueError, match=r"torch\.compile"):
        fit(compiled, split())


@feature(
    "Lightning's demo language model", how="its targets are also the decoder's input: `private=()` lets them be sent"
)
@pytest.mark.parametrize("clients", [1, 3])
def test_demo_language_model(clients):
    pytest.importorskip("requests")  # the module of the demo wants it for its data
    from lightning.pytorch.demos.transformer import LightningTransformer

    class Words(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            generator = torch.Generator().manual_seed(index)
            words = torch.randint(0, 30, (7,), generator=generator)
            return words[:-1], words[1:]

    module = LightningTransformer(vocab_size=30)
    module.prepare_data = lambda: None  # would download a corpus
    plain = copy.deepcopy(module)
    strategy = EdgeSplitStrategy(
        clients=clients, cuts="model.transformer.decoder.layers.0.norm1", private=(), timeout=60
    )
    for model, chosen in ((plain, "auto"), (module, strategy)):
        trainer = L.Trainer(strategy=chosen, max_epochs=1, enable_checkpointing=False, **QUIET)
        torch.manual_seed(2)
        trainer.fit(model, DataLoader(Words(), batch_size=2))
    assert len(strategy.rounds) == 1
    if clients == 1:
        torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
