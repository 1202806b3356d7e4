"""The stack of the original specification, in the versions that it names."""
