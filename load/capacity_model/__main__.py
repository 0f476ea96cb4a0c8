"""The address of 0.1 for `python -m toque.load.bottleneck`, which measures what this model computes with."""

import runpy

runpy.run_module("toque.load.bottleneck", run_name="__main__", alter_sys=True)
