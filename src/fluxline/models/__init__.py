"""Model families: one folder each, and the verbs by which the engine speaks to all of them."""
