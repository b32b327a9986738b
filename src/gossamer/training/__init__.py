"""Training loops: what moves values, what changes supports, what follows them."""
