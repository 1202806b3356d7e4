"""Resources, login, documentation: everything that is not hot, declared in one table."""
