"""MAGI Lite: make videos with MAGI-1 second by second on one graphics card."""

__version__ = "0.1.0"
