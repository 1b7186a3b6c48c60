"""Readers and writers of file formats; they know nothing of splits' division or of training."""
