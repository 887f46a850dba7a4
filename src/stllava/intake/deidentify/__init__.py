"""What keeps patients' identities out of an image set: in headers, in names and in pixels."""
