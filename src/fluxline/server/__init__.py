"""The HTTP front doors. The only room that knows a web framework."""
