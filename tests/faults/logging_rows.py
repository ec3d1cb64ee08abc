"""A writer of the prediction log in a process of its own: submits rows one after the other and says of each whether it was acknowledged."""

from __future__ import annotations

import sys
from pathlib import Path

from ct.data.predictions import Inbox
from ct.errors import Unavailable


def main() -> None:
    inbox = Inbox(Path(sys.argv[1]), "r")
    for at in range(int(sys.argv[2])):
        try:
            inbox.submit([{"kind": "prediction", "id": f"p{at}", "epoch": 1}]).result(20)
            print(f"acknowledged p{at}", flush=True)
        except Unavailable as error:
            print(f"refused p{at} {error.found}", flush=True)
    inbox.close()


if __name__ == "__main__":
    main()
