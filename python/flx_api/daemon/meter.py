"""The meter's command line: a plugin's argv with a counter around its standard output.

Strategy: Meltano starts `python -I -S meter.py NATIVE_SO METER_DIR ROLE PLUGIN ORDER -- argv...` in place of `argv...`;
the plugin runs as our child with the same stdin, stderr, environment and folder, its stdout passes through the native
meter and on to Meltano. Everything lives in `meter_shell`, because Python compiles a main script anew at every start
but keeps the compiled form of an imported module: this file must stay a few lines long.

Rules:
- Standalone: the standard library and the native module only; the package `flx_api` is never imported (-S hides it).
- Whatever goes wrong in here, the plugin's bytes and its exit are what Meltano sees.
"""

import sys

if __name__ == "__main__":
    # Last, so that a module of the daemon can never stand in for one of the standard library.
    sys.path.append(__file__.rpartition("/")[0] or ".")
    import meter_shell  # type: ignore[import-not-found, unused-ignore]

    meter_shell.main(sys.argv)
