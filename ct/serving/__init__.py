"""The Ray Serve application: endpoint, slots, router, runtime."""
