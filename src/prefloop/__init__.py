"""Online iterative RLHF: the whole loop, one install, one resumable command."""

from importlib.metadata import version

__version__ = version("prefloop")
