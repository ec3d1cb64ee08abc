"""The control plane in a process of its own, told what to do line by line: {"do": method, ...} in, {"ok": …} or {"error": …} out."""

from __future__ import annotations

import json
import sys
from typing import Any

from ct import settings
from ct.errors import CtError
from ct.registry.routes import Arm, Route
from ct.serving import local
from ct.serving.client import Serving


def carry_out(place: settings.Settings, serving: Serving, do: str, args: dict[str, Any]) -> Any:
    match do:
        case "start":
            return local.start(place)
        case "connect":
            return local.connect(place)
        case "deploy":
            return serving.deploy()
        case "stage":
            return serving.stage(args["version"], args["manifest"], args.get("app", ""))
        case "activate":
            return serving.activate(Route.from_json(args["route"]))
        case "deploy_arm":
            return serving.deploy_arm(Arm(args.pop("version"), args.pop("manifest")), **args).app
        case "scale_arm":
            replicas = args.pop("replicas")
            return serving.scale_arm(Arm(**args), replicas)
        case "arm_state":
            return serving.arm_state(Arm(**args))
        case "remove_arm":
            return serving.remove_arm(Arm(**args))
        case "state":
            return serving.state()


def main() -> None:
    place = settings.load(sys.argv[1], environ={}, port=int(sys.argv[2]), replicas=int(sys.argv[3]))
    serving, out = Serving(place, "tiny"), sys.stdout
    sys.stdout = sys.stderr  # Ray and Serve print; answers must stay alone on their pipe
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            said: dict[str, Any] = {"ok": carry_out(place, serving, asked.pop("do"), asked)}
        except CtError as error:
            said = {"error": str(error)}
        print(json.dumps(said), file=out, flush=True)


if __name__ == "__main__":
    main()
