"""The round: what it was like, and the processes and links that carry it."""
