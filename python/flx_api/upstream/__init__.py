"""The way to the daemon: where it is, and the multiplexed stream that commands travel on."""
