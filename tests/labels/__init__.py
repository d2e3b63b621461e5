"""Tests of the label store."""
