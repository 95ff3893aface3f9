"""Cairn builds chat models that you can check.

Importing this package imports nothing heavy: rooms load what they need when they are used.
"""

__version__ = "0.1.0"
