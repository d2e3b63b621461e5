"""Tests of the labelling app."""
