"""A small adapter for everything that can be timed; `fastadam.bench.registry` has the table of them."""
