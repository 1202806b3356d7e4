"""One file a revision; the newest is `database.HEAD`."""
