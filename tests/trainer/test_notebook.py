from __future__ import annotations

import sys

import pytest
from rows import feature

CELLS = [
    "import lightning as L, torch\n"
    "from lightning.pytorch.demos.boring_classes import BoringModel\n"
    "from lightning_edgesplit import EdgeSplitStrategy",
    "strategy = EdgeSplitStrategy(clients=2, cuts='layer', timeout=30)\n"
    "options = dict(accelerator='cpu', max_epochs=1, logger=False, enable_checkpointing=False)\n"
    "trainer = L.Trainer(strategy=strategy, **options)\n"
    "trainer.fit(BoringModel())",
    "print('samples', [client.samples for client in strategy.rounds[0].clients])",
]


@feature("notebooks", how="clients are forked from the kernel")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_trains(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    assert sys.executable
    nbclient.NotebookClient(
        notebook, timeout=90, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    texts = "".join(output.get("text", "") for output in notebook.cells[2].outputs)
    assert texts.strip() == "samples [32, 32]"
