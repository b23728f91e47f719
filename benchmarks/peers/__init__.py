"""Other systems beside ours, on the same work and the same cores: `python -m benchmarks.peers`."""
