"""What is run on the kernels but is no benchmark: the check on a GPU, calls for its sanitizers."""
