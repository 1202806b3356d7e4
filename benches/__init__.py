"""Benchmarks: side by side with a rival in the same run, written as records, never as timed tests."""
