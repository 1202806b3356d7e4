"""FLX API: a Meltano project as a service.

This package imports nothing by itself, so that `flx_api._core` (the native module) and the command line start fast.
The request path and the realtime path are readable in `flx_api.main`.
"""
