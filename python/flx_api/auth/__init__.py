"""Who asks: the key set that tokens are verified with, and one-use tickets."""
