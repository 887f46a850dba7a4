"""Reads DICOM files: header, pixels, display windows and stacks of slices."""
