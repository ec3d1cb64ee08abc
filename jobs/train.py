"""`ray job submit -- python jobs/train.py`: retrain on all published shards, evaluate, register. Same options as `ct train`."""

import sys

from ct.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
