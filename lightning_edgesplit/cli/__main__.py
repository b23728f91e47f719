"""``python -m lightning_edgesplit.cli``."""

import sys

from lightning_edgesplit.cli import main

sys.exit(main())
