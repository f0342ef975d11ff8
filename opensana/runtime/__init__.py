"""What is applied to a network from outside: placing, packing, compiling, C++ kernels."""
