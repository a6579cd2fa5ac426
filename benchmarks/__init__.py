"""How fast blockspike is: methods, other libraries and the memory's bandwidth, side by side.

`python -m benchmarks.run STUDY ...` measures, `python -m benchmarks.guard` checks a few ratios.
"""
