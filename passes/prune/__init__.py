"""Structured pruning of a graph, after training."""
