"""The wire formats, and the two scripts that generate and guard the code made from them."""
