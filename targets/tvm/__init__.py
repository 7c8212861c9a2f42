"""Whole-model programs in C over the kernel library of ``runtime/kernels``, and the sessions that run them."""
