"""Tests of the program as real processes, sockets and files. `python -m tests` runs them all."""
