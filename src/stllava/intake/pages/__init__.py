"""The pages that an import writes for people."""
