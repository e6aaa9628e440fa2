"""Kernels in OpenCL C for mobile GPUs, and for any other OpenCL device."""
