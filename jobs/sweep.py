"""`ray job submit -- python jobs/sweep.py`: search the pipeline's space on the newest data and train the best. Same options as `ct sweep`."""

import sys

from ct.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["sweep"]
    main()
