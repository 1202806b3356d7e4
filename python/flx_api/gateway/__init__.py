"""The HTTP side of a worker: the edge, the command route, and the one place that builds responses."""
