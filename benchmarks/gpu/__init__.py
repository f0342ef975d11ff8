"""One program for a GPU: right, fast, small, and what trains; `python -m benchmarks.gpu`."""
