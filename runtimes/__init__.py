"""Runtimes: libedgert in C, what builds it, and its bindings."""
