"""The command line `flx`, the supervisor behind `flx serve`, and the demo.

`main` lists the commands; each imports what it needs when it is called, so that none pays for another.
"""
