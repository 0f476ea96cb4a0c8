"""Load tests over HTTP against objectives, and benchmarks of single parts.

Load talks to a running platform from outside, as any client does. Benchmarks print the machine, versions,
shape, p20/p50/p80 and the ratio to a named baseline measured in the same process.
"""

if __name__ != "toque.load":  # under a second name, each class would be there twice
    raise ImportError(f"{__name__} is imported as toque.load")
