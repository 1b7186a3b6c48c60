"""What sources of files share: their division into splits, and what each file becomes."""
