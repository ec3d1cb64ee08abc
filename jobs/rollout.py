"""`ray job submit -- python jobs/rollout.py start v2`: steer a rollout from the cluster. Same options as `ct rollout`."""

import sys

from ct.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["rollout"]
    main()
