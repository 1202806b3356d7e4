"""`python -m flx_api` is `flx`."""

from flx_api.cli.main import main

main()
