"""What the daemon tells, followed once per process and remembered for those who resume."""
