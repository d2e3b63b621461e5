"""Benchmarks scored from files that already exist: judgements, ratings, solutions and log-probabilities.

No model and no network: whatever was judged can be scored again, and any number here comes from stored verdicts alone.
"""
