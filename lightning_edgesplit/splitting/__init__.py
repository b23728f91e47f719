"""Finding, proving and running cuts of any LightningModule, and what each cut costs."""

from lightning_edgesplit.splitting.cache import default_folder
from lightning_edgesplit.splitting.cuts import END, Cut, CutProfile, Cuts
from lightning_edgesplit.splitting.find import find_cuts
from lightning_edgesplit.splitting.timing import time_cuts

__all__ = ["END", "Cut", "CutProfile", "Cuts", "default_folder", "find_cuts", "time_cuts"]
