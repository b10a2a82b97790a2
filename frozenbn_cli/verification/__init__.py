"""The three claims on a converted file, checked against its source."""
