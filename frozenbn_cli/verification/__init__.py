"""The three claims on a converted file, checked against its source; see `frozenbn_cli.verification.claims`."""
