"""Bytes on disk: files read in pieces, archives, streams, and outputs that are whole or absent."""
