"""The kernel library: C sources, how they are compiled, and how they are called from Python."""
