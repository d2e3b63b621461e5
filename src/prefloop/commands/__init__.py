"""The commands of `prefloop`, by what they are for; `cli.py` puts them together."""
