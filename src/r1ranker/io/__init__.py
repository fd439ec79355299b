"""How files are read. In: paths. Out: lines, rows and documents that are whole, or a `DataError` with file and line."""
