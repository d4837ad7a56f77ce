"""Leaves: small helpers that know none of the program's nouns."""
