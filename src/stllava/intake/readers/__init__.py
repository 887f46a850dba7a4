"""Readers of image files, one file format each: pixels, facts that may be told, and identities that may not."""
