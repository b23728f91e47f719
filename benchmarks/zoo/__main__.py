"""Splits every model of the zoo, trains it beside plain Lightning, and prints what was found. ``make zoo``.

For each model: all its cuts are found and proven; then it is trained for a few steps at its first, middle and last cut
by a server and one client, and its weights are compared with those of the plain Trainer. The largest difference is
relative to each tensor's largest value. Models whose library is not installed are left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import warnings
from dataclasses import asdict, replace
from importlib.util import find_spec

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.zoo import language, own, vision
from benchmarks.zoo.check import check
from benchmarks.zoo.entry import Entry

LABELS_STAY = {
    "autoencoder, input private": "net.4",
    "LSTM, packed": "net.second",
    "transformer encoder, mask given": "net.layers.2",
    "variational autoencoder": "decoder.0",
    "resnet18": "avgpool",
    "vgg11_bn": "features",
    "vit_b_16": "encoder.ln",
    "maxvit": "blocks.1",
    "timm swin_tiny_patch4_window7_224": "net.norm",
    "timm mixer_s32_224": "net.norm",
    "hf BERT": "pooler",
    "hf GPT-2 (tied)": "ln_f",
    "hf T5": "encoder.final_layer_norm",
    "hf Whisper": "encoder.layer_norm",
}
"""Models that are split a second time, with a second cut, behind which the client goes on."""

ENTRIES: list[Entry] = [*own.entries(), *vision.entries(), *language.entries()]
ENTRIES += [
    replace(entry, name=f"{entry.name}, labels stay", second_cut=LABELS_STAY[entry.name])
    for entry in ENTRIES
    if entry.name in LABELS_STAY
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the names or libraries wanted")
    parser.add_argument("--steps", type=int, default=3, help="of training")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "transformers", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    table = Table("model", "cuts", "trained at", "seconds", "largest difference", "why not", title="Zoo")
    rows = []
    for entry in ENTRIES:
        if options.only not in entry.name and options.only not in entry.library:
            continue
        if entry.library != "ours" and find_spec(entry.library) is None:
            print(f"{entry.name}: left out, {entry.library} is not installed", file=sys.stderr)
            continue
        row = check(entry, options.steps)
        rows.append(row)
        worst = "" if row.difference is None else f"{row.difference:.1e}"
        cells = [entry.name, str(row.cuts), ", ".join(row.trained), f"{row.seconds:.1f}", worst, row.why]
        print("  ".join(cells), file=sys.stderr, flush=True)
        table.add_row(*cells)
    Console(width=150).print(table)
    about = {"torch": torch.__version__, "lightning": L.__version__, "machine": platform.machine(), "argv": sys.argv}
    counts = {"models": len(rows), "proven": sum(row.proven for row in rows)}
    print(json.dumps({**counts, "rows": [asdict(row) for row in rows], **about}))


if __name__ == "__main__":
    main()
