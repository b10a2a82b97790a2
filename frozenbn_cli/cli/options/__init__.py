"""The options of the command line, each defined once, in a module for what they speak of."""
