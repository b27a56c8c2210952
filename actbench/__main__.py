"""`python -m actbench` is `actbench`."""

from actbench.cli.main import main

if __name__ == "__main__":
    main()
