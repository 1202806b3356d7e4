"""The daemon: all durable state and every run. A tower of its own on floors 0-3; the gateway never imports it."""
