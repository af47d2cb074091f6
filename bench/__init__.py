"""The benchmark suite: contenders, workloads, limits, and what is made of their times."""
