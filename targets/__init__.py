"""Targets: what a program is built for, and the kernels of each family."""
