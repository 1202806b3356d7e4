"""`python -m flx_api` is `flx`."""

from flx_api.cli.entry import main

main()
