"""One module per system: `play(work, record, **options)` does the work, in a process of its own (`child.py`)."""
