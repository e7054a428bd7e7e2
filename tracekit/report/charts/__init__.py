"""The charts, one module each: rows in, an Altair chart out, ready for a notebook as it stands."""
