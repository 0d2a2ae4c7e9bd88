"""Throughput measurements: the loader, the training step, and the budget verdict."""
