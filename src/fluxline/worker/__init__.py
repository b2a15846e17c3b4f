"""The process around an engine: takes requests from a socket, sends events back.

What it draws with is behind the `Engine` protocol of `loop.py`; the heavy imports happen only
when the process has been asked to open one.
"""
