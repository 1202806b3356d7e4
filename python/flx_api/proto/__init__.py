"""The wire between gateway and daemon."""
