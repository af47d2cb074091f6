"""Two ranks of gloo with a time-out of two seconds, of which rank 1 takes no second step."""

import os
import sys
import time
from pathlib import Path

from sharded_training import gloo, optimizer, take_steps

if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    opt = optimizer(gloo(rank, 2, Path(sys.argv[1]), seconds=2.0))
    take_steps(opt, [0], rank, 2)
    if rank == 1:
        time.sleep(6.0)
    else:
        take_steps(opt, [1], rank, 2)
