"""The stages of benchmarks/cuda.py. Each is a function of a `Stage`, in a process of its own."""
