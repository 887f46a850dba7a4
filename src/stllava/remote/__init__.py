"""Everything that leaves this process: the only package that opens a connection."""
