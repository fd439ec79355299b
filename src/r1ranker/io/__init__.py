"""Files: how they are opened, locked and told apart. Imports nothing of the package but its core."""
