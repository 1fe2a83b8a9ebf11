"""MAGI Lite: make videos with MAGI-1 second by second on one graphics card."""

__version__ = "0.2.0.dev0"
