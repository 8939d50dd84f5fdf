"""The proof: real servers as processes, real sockets, real files. `python -m tests` runs them all."""
