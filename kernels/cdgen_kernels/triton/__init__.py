"""The ops as Triton kernels for GPUs, under the names of the reference."""
