from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from lightning_edgesplit.scheduling import load_clients

ROOT = Path(__file__).parents[2]


def recipe(name: str):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def recipe_of(config: Path) -> str:
    return "vgg" if config.stem.startswith("vgg") else "resnet"


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_one_of_its_recipe_and_builds_its_model(config):
    module = recipe(recipe_of(config))
    loaded = OmegaConf.merge(OmegaConf.structured(module.Config), OmegaConf.load(config))
    plain = OmegaConf.to_object(loaded)
    profiles, server = load_clients(config.parent / plain.edgesplit["clients"])
    assert len(profiles) == 4
    assert server is not None
    net = module.network(plain.model["name"], 10)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ConfigKeyError, match="optimiser"):
        OmegaConf.merge(loaded, OmegaConf.from_dotlist(["optimiser.lr=1"]))


@pytest.mark.parametrize("clients", sorted((ROOT / "configs" / "clients").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_clients_loads(clients):
    profiles, _ = load_clients(clients)
    assert len(profiles) == (8 if clients.stem == "eight" else 4)


def test_the_models_have_the_parameters_that_their_papers_layers_add_up_to():
    def batch_norm_conv(inputs: int, outputs: int, kernel: int, bias: bool = False) -> int:
        return inputs * outputs * kernel**2 + (outputs if bias else 0) + 2 * outputs

    expected = batch_norm_conv(3, 64, 3)
    inputs = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            first = inputs if block == 0 else width
            expected += batch_norm_conv(first, width, 3) + batch_norm_conv(width, width, 3)
            if first != width:
                expected += batch_norm_conv(first, width, 1)
        inputs = width
    expected += 512 * 10 + 10
    net = recipe("resnet").network("resnet18", 10)
    assert sum(p.numel() for p in net.parameters()) == expected == 11_173_962

    inputs, expected = 3, 512 * 10 + 10
    for width in (64, 128, 256, 256, 512, 512, 512, 512):
        expected, inputs = expected + batch_norm_conv(inputs, width, 3, bias=True), width
    assert sum(p.numel() for p in recipe("vgg").network("vgg11", 10).parameters()) == expected


def test_a_set_that_is_neither_there_nor_known_is_refused(tmp_path):
    module = recipe("resnet")
    with pytest.raises(SystemExit, match=r"data.name='imagenet' is unknown: use fashion-mnist-mini"):
        module.data_sets("imagenet", tmp_path)
    with pytest.raises(FileNotFoundError, match="train"):
        module.data_sets("folder", tmp_path)


def test_a_folder_of_images_is_read(tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        for label in ("cat", "dog", "owl"):
            (tmp_path / part / label).mkdir(parents=True)
            Image.new("L", (40, 50)).save(tmp_path / part / label / "0.png")  # grey, of another size
    train, test, classes = recipe("vgg").data_sets("folder", tmp_path)
    assert classes == 3
    assert train[0][0].shape == test[2][0].shape == (3, 32, 32)


@pytest.mark.parametrize("recipe_file", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_a_recipe_is_one_short_file(recipe_file):
    text = recipe_file.read_text()
    assert text.count("\n") <= 150
    assert "from recipes" not in text


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["plain=true", "edgesplit.clients=2"])
def test_a_recipe_trains_from_the_command_line(how, tmp_path):
    command = [
        sys.executable, "-W", "ignore", str(ROOT / "recipes" / "vgg.py"), str(ROOT / "configs" / "vgg11.yaml"), how,
        "trainer.max_steps=2", "trainer.limit_val_batches=1", "trainer.logger=false", "edgesplit.cuts=features.7",
        "trainer.enable_checkpointing=false", "trainer.enable_progress_bar=false", "data.batch_size=8",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "val_accuracy: " in done.stdout
