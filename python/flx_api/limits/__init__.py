"""Rate limits: policies from settings to the native core."""
