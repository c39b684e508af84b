"""Parts about the Memory-Native family: the members side by side, and each on what it is known for."""
