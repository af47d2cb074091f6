"""What can be timed, a small adapter for each; `fastadam.bench.registry` has the table of them."""
