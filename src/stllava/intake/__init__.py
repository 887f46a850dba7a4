"""The front door: medical image files of any kind become an image set without patients' identities."""
