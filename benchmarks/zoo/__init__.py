"""The zoo: models of every kind, each split at its first, middle and last cut and trained beside plain Lightning."""
