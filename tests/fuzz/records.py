"""How the records of an archive lie in one input of the fuzzer."""

SEPARATOR = b"\n\xff--\xff\n"
