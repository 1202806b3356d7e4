"""Schedules of meltano.yml: when they fire, what is remembered of them, how they are shown."""
