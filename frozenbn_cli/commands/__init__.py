"""What each command does once its line is parsed: call the library, show, return the exit code.

Imported when its command runs, so that `--help` waits for none of it.
"""
