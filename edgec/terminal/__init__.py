"""What the commands print and complete: tables for people, JSON for scripts, progress on stderr."""
