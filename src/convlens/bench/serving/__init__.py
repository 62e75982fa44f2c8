"""`convlens bench serve`: our server, its peers, and a load generator, each in a process of its own."""
