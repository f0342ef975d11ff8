"""Applied to a network from outside: device and dtype, packing, torch.compile, C++ kernels."""
