"""Whether what is said of GPUs is true: `make gpu`, see docs/explanation/gpu.md."""
