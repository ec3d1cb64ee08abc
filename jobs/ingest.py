"""`ray job submit -- python jobs/ingest.py TABLE FILE…`: check files and publish them. Same options as `ct ingest`."""

import sys

from ct.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["ingest"]
    main()
