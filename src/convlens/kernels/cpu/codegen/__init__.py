"""The shared builder of LLVM IR: loops, vectors, masks, threads, cache."""
