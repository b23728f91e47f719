from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import os
import sys

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from small import Deterministic, fit, vectors
from torch import nn

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.cli import main
from lightning_edgesplit.splitting import default_folder, find_cuts
from lightning_edgesplit.splitting.proof import Probe


class Convolutional(L.LightningModule):
    skip = False

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(width, width, 3), nn.Flatten(), nn.Dropout(), nn.Linear(16 * width, 10))
        self.scale = 1.0

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.head(self.stem(batch[0])) * self.scale, batch[1])
        self.log("loss", loss)
        return loss


@dataclasses.dataclass
class Hidden:
    state: torch.Tensor
    note: str


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 8)

    def forward(self, x):
        return Hidden(self.inner(x), "of the encoder")


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, hidden):
        return {"out": self.inner(hidden.state), "before": [hidden.state]}


class Containers(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.middle, self.last = Encoder(), Middle(), nn.Linear(8, 10)

    def training_step(self, batch, batch_idx):
        outputs = self.middle(self.encoder(batch["x"]))
        return {"loss": F.cross_entropy(self.last(outputs["out"] + outputs["before"][0]), batch["y"])}


def images(size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 3, size, size, dtype=dtype), torch.randint(0, 10, (4,))


CASES = {
    "convolutions": (Convolutional, images),
    "containers": (Containers, lambda: {"x": torch.randn(4, 12), "y": torch.randint(0, 10, (4,))}),
}


@pytest.fixture
def proofs(monkeypatch):
    """The names of the cuts that were proven since the last `clear`."""
    names = []
    prove = Probe.prove

    def counting(self, cut):
        names.append(cut.name)
        return prove(self, cut)

    monkeypatch.setattr(Probe, "prove", counting)
    return names


def shapes(structure):
    """What a structure builds, with numbers for the leaves: the oracle compares objects, not descriptions."""
    return structure.build(range(100))


@pytest.mark.parametrize("case", CASES)
def test_a_second_call_gives_the_same_without_a_proof(case, proofs, tmp_path):
    kind, batch = CASES[case]
    module = kind()
    optimizer = torch.optim.Adam(module.parameters())
    fresh = find_cuts(module, batch(), optimizer, cache=tmp_path)
    assert proofs
    assert not fresh.cached
    proofs.clear()
    other = kind()  # other weights, another object, another batch, another rate
    kept = find_cuts(other, batch(), torch.optim.Adam(other.parameters(), lr=0.5), cache=tmp_path)
    assert not proofs
    assert kept.cached
    assert list(kept) == list(fresh), "all fields, with the profiles"
    assert kept.refused == fresh.refused
    assert len(fresh) > 2
    for old, new in zip(fresh, kept, strict=True):
        if old.border is not None:
            assert [shapes(x) for x in new.border.structures] == [shapes(x) for x in old.border.structures]
            assert [type(shapes(x)) for x in new.border.structures] == [type(shapes(x)) for x in old.border.structures]
    assert find_cuts(module, batch(), optimizer) == fresh, "and without a folder all is proven"
    assert proofs


def test_neither_module_nor_generator_is_changed_by_the_cache(tmp_path):
    module, batch = Convolutional(), images()
    before, generator = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    for cached in (False, True):
        assert find_cuts(module, batch, cache=tmp_path).cached == cached
        assert torch.equal(generator, torch.get_rng_state())
        torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
        assert all("forward" not in vars(child) for child in module.modules())


def test_training_with_kept_cuts_equals_training_with_fresh_ones_bit_for_bit(monkeypatch, tmp_path, proofs):
    monkeypatch.setenv("EDGESPLIT_CACHE", str(tmp_path))
    data, first = vectors(48), Deterministic()
    modules = [first, copy.deepcopy(first)]
    for module, cached in zip(modules, (False, True), strict=True):
        proofs.clear()
        strategy = EdgeSplitStrategy(clients=1, cuts="net.3", timeout=30)
        fit(module, data, strategy)
        assert strategy.cuts.cached == cached
        assert bool(proofs) != cached
    torch.testing.assert_close(modules[1].state_dict(), modules[0].state_dict(), rtol=0, atol=0)
    again = copy.deepcopy(first)
    fit(again, data, EdgeSplitStrategy(clients=1, cuts="net.4", timeout=30))
    assert proofs, "another cut is another question"


def frozen(module, options):
    module.stem[0].weight.requires_grad_(False)


def unlike(module, options):
    module.scale = 2.0


def nested(module, options):
    module.head[2].p = 0.25


def evaluated(module, options):
    module.stem[1].eval()


def larger(module, options):
    options["batch"] = images()[0][:3], images()[1][:3]


def whole(module, options):
    module.double()
    options["batch"] = images(dtype=torch.float64)


def open_to_all(module, options):
    options["private"] = ["0"]


def one(module, options):
    options["only"] = ["stem"]


def more_samples(module, options):
    options["samples"] = 3


def adam(module, options):
    options["optimizer"] = torch.optim.Adam(module.parameters())


def momentum(module, options):
    options["optimizer"] = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def lower(module, options):
    options["context"] = lambda: torch.autocast("cpu", dtype=torch.bfloat16)


def hooked(module, options):
    module.stem.register_forward_hook(lambda module, args, output: output * 2)


def configured(module, options):
    module.config = {"layers": [1, 2]}


def of_the_class(module, options):
    type(module).skip = True


def tied(module, options):
    module.head[0].bias = module.stem[0].bias


CHANGES = [
    frozen, unlike, nested, evaluated, larger, whole, open_to_all, one, more_samples, adam, momentum, lower, hooked,
    configured, of_the_class, tied,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_the_answer_depends_on_makes_a_new_proof(change, proofs, tmp_path, monkeypatch):
    monkeypatch.setattr(Convolutional, "skip", False)

    def ask(change):
        module = Convolutional()
        options = {"batch": images(), "optimizer": torch.optim.SGD(module.parameters(), lr=0.1)}
        change(module, options)
        return find_cuts(module, **options, cache=tmp_path)

    ask(lambda module, options: None)
    assert ask(lambda module, options: None).cached
    proofs.clear()
    assert not ask(change).cached
    assert proofs
    assert ask(change).cached


def test_the_type_that_autocast_computes_in_is_a_part_of_the_question(tmp_path, monkeypatch):
    def context():
        return torch.autocast("cpu", dtype=getattr(torch, os.environ["KIND"]))

    for kind, cached in (("bfloat16", False), ("bfloat16", True), ("float16", False)):
        monkeypatch.setenv("KIND", kind)
        assert find_cuts(Convolutional(), images(), context=context, cache=tmp_path).cached == cached


def test_what_the_trainer_leaves_on_a_module_makes_none(tmp_path):
    module = Convolutional()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    find_cuts(module, images(), optimizer, cache=tmp_path)
    module.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    module._current_fx_name = "training_step"
    optimizer.param_groups[0]["lr"] = 0.01
    assert find_cuts(module, images(), optimizer, cache=tmp_path).cached


SOURCE = """
import lightning as L
import torch.nn.functional as F
from torch import nn

import {helper}

FACTOR = 1.0


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10))

    def training_step(self, batch, batch_idx):
        return {helper}.loss(self.net(batch[0]), batch[1]) * FACTOR
"""


@pytest.mark.parametrize("changed", ["module", "helper", "global"])
def test_a_changed_source_makes_a_new_proof(changed, tmp_path, monkeypatch, proofs):
    names = {key: f"{key}_of_{changed}" for key in ("module", "helper")}
    texts = {
        "module": SOURCE.format(helper=names["helper"]),
        "helper": "import torch.nn.functional as F\n\n\ndef loss(x, y):\n    return F.cross_entropy(x, y)\n",
    }
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def ask():
        for key, text in texts.items():
            (tmp_path / f"{names[key]}.py").write_text(text)
            sys.modules.pop(names[key], None)
        importlib.invalidate_caches()
        loaded = importlib.import_module(names["module"])
        if changed == "global" and texts.get("now"):
            loaded.FACTOR = 2.0
        return find_cuts(loaded.Module(), (torch.randn(4, 12), torch.randint(0, 10, (4,))), cache=tmp_path / "kept")

    ask()
    assert ask().cached
    if changed == "global":
        module = sys.modules[names["module"]]
        module.FACTOR = 2.0  # as an argument of a script would set it: the file is the same
        batch = torch.randn(4, 12), torch.randint(0, 10, (4,))
        assert not find_cuts(module.Module(), batch, cache=tmp_path / "kept").cached
        return
    texts[changed] += "\n# a remark, which nobody can tell from a change\n"
    proofs.clear()
    assert not ask().cached
    assert proofs


def test_a_class_without_a_source_and_a_function_as_question_are_not_kept(tmp_path):
    space = {"__name__": "nowhere", "L": L, "nn": nn, "F": F}
    exec(
        "class Typed(L.LightningModule):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = nn.Linear(12, 10)\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        return F.cross_entropy(self.net(batch[0]), batch[1])\n",
        space,
    )
    batch = torch.randn(4, 12), torch.randint(0, 10, (4,))
    assert find_cuts(space["Typed"](), batch, cache=tmp_path).find("net")
    assert find_cuts(Convolutional(), images(), only=lambda name: name == "stem", cache=tmp_path).find("stem")
    assert not list(tmp_path.iterdir())


def digest_kept(text):
    """A file that is whole, and says something else than the step does."""
    import hashlib

    body = json.loads(text)["body"]
    body["outputs"][0]["border"][0][1] = [["float64", 2, True]]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"digest": digest, "body": body})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: text[:-20], "JSONDecodeError"),
        (lambda text: "", "JSONDecodeError"),
        (lambda text: '{"hello": "world"}', "KeyError"),
        (lambda text: "[" * 100_000, "RecursionError"),
        (lambda text: text.replace('"error": ', '"error": 1'), "damaged"),
        (digest_kept, "other outputs"),
    ],
)
def test_a_file_that_is_not_whole_costs_a_warning_and_a_new_proof(spoil, reason, proofs, tmp_path):
    module, batch = Convolutional(), images()
    fresh = find_cuts(module, batch, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(spoil(file.read_text()))
    proofs.clear()
    with pytest.warns(UserWarning, match=f"cache of proven cuts does not fit.*{reason}") as warned:
        again = find_cuts(module, batch, cache=tmp_path)
    assert len(warned) == 1
    assert proofs
    assert again == fresh
    assert find_cuts(module, batch, cache=tmp_path).cached, "and it is whole again"


def test_a_step_that_goes_another_way_than_it_did_is_proven_anew(tmp_path, proofs):
    class Turning(Convolutional):
        def training_step(self, batch, batch_idx):
            between = self.stem(batch[0])
            if os.environ["WAY"] == "other":  # what no key can see
                between = self.stem[2](between)
            return F.cross_entropy(self.head(between), batch[1])

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WAY", "one")
        find_cuts(Turning(), images(), cache=tmp_path)
        assert find_cuts(Turning(), images(), cache=tmp_path).cached
        environment.setenv("WAY", "other")
        with pytest.warns(UserWarning, match="cache of proven cuts does not fit.*in another order"):
            assert not find_cuts(Turning(), images(), cache=tmp_path).cached


def test_a_folder_that_cannot_be_is_survived(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="cannot be read.*NotADirectoryError") as warned:
        assert find_cuts(Convolutional(), images(), cache=tmp_path / "file" / "folder").find("stem")
    assert len(warned) == 1


def test_a_folder_to_read_only_is_survived_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:  # as root, permissions hold nothing back
        broken.setattr(os, "replace", full)
        with pytest.warns(UserWarning, match=r"cannot be written.*No space left.*EDGESPLIT_CACHE=") as warned:
            assert find_cuts(Convolutional(), images(), cache=tmp_path).find("stem")
    assert len(warned) == 1
    assert not list(tmp_path.iterdir())
    find_cuts(Convolutional(), images(), cache=tmp_path)
    monkeypatch.setattr(os, "utime", full)
    assert find_cuts(Convolutional(), images(), cache=tmp_path).cached, "reading needs no writing"


def test_the_folder_keeps_what_was_used_last_and_what_is_not_ours(tmp_path):
    (tmp_path / "of the user.json").write_text("{}")
    old = [tmp_path / f"{number:064x}.cuts.json" for number in range(205)]
    for number, path in enumerate(old):
        path.write_text("{}")
        os.utime(path, (number, number))
    os.utime(tmp_path / "of the user.json", (0, 0))
    find_cuts(Convolutional(), images(), cache=tmp_path)
    left = set(tmp_path.iterdir())
    assert len(left) == 200 + 1
    assert tmp_path / "of the user.json" in left
    assert left.isdisjoint(old[:6])
    (new,) = left - {*old, tmp_path / "of the user.json"}
    os.utime(new, (0, 0))
    assert find_cuts(Convolutional(), images(), cache=tmp_path).cached
    assert new.stat().st_mtime > 1e9, "a hit is a use"


def test_where_the_folder_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() is None, "tests keep nothing"
    fit(Deterministic(), vectors(16), EdgeSplitStrategy(clients=1, cuts="net.3", timeout=30), epochs=1)
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv("EDGESPLIT_CACHE")
    assert default_folder() == tmp_path / ".cache" / "lightning-edgesplit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_folder() == tmp_path / "x" / "lightning-edgesplit"
    monkeypatch.setenv("EDGESPLIT_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own"


def training_data():
    return [(torch.randn(4, 12), torch.randint(0, 10, (4,)))]


def test_the_command_says_where_its_cuts_come_from(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("EDGESPLIT_CACHE", str(tmp_path))
    arguments = ["cuts", "--module", "small.Deterministic", "--data", f"{__name__}.training_data"]
    for more, line in (([], "found and proven in"), ([], "from the cache, "), (["--no-cache"], "found and proven in")):
        assert main([*arguments, *more]) == 0
        assert line in capsys.readouterr().out
