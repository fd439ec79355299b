"""Models that can be asked, and how they are found and loaded. Imports io and the core."""
