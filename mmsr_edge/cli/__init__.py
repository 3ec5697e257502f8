"""The command line: `mmsr-edge upscale`, `mmsr-edge info`, `mmsr-edge bench`."""
