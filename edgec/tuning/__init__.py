"""Plans of kernels measured on the target, and the records of what was found."""
