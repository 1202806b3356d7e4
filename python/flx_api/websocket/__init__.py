"""The realtime side of a worker: connections, their protocol and why they end."""
