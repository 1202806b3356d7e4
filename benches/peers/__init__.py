"""Rivals: their configurations, applications and calls, and what is asked of all servers."""
