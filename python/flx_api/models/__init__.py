"""What crosses a border, as msgspec structs with constraints. Times are microseconds since the epoch (`*_us`)."""
