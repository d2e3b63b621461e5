"""Annotators: rules, functions, files, simulated people, models, judges behind an endpoint, and people."""
