"""Benchmarks that policies are measured on: what is asked, and what is made of the answers.

A benchmark reads its questions, has them answered and, where it needs one, judged, and writes rows in the format that its
authors publish. The score is then read from those rows by `prefloop.scoring`, as it is from anybody's: there is one way
from verdicts to a number. Knows nothing about how answers are sampled or who judges.
"""
