"""FPGAs through high-level synthesis: a quantised graph becomes a project of streaming C++ kernels."""
