"""Files and settings: how they are opened, checked, locked, told apart and replaced. Imports the core alone."""
