"""Everything that touches a model, a file of statements, or a plot."""
