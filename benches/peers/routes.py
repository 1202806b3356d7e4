"""The paths that only the benchmark serves, known to those who ask and those who answer."""

FRAMEWORK = "/v1/bench/framework"
"""A route of the framework."""

REPLY = "/v1/bench/reply"
"""A route beside it."""
