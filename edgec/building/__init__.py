"""Compilers and what they made: C toolchains, TVM, the cache of kernels, and libedgert ready to ship."""
