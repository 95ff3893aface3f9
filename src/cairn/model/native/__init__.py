"""C++ of our own, made by the machine's compiler at the first use: how a source becomes a library, and the kernels of training."""
