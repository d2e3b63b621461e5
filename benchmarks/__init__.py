"""Benchmarks: prefloop's public training stages against Hugging Face TRL on the same data in the same run."""
