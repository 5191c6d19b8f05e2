"""Which parameters: paths, roles, and the forms of a mask."""
