"""Code that files bring along, run in a process of its own."""
