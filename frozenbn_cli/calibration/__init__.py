"""Running statistics formed anew from data: the data, the passes over them, and the file."""
