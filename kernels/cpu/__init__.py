"""The kernels of a CPU, compiled with the package: C++ behind ctypes, called by the operators' CPU kernels."""
