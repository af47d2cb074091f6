"""What is measured and checked on a machine with a GPU, in one command: `make gpu-day`."""
