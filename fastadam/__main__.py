"""`python -m fastadam`."""

from fastadam.cli import main

if __name__ == "__main__":
    main()
