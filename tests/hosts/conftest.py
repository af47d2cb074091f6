"""Two tests at a time on two cores: one thread for each, and no look-ups in the network."""

import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WANDB_MODE="disabled", KERAS_BACKEND="torch")
