"""The control plane over HTTP: what `ct rollout` and `ct flag` do, for programs."""
