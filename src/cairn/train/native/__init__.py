"""C++ of our own for the optimiser, made by the machine's compiler at the first use."""
