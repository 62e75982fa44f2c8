"""One file per network, and the register of their names."""
