"""`ray job submit -- python jobs/control.py`: the loop, on the cluster. Same options as `ct watch`."""

import sys

from ct.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["watch"]
    main()
