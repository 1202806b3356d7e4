"""Protocol definitions of package flx.v1 and the code generated from them."""
