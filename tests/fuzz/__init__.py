"""Coverage-guided fuzzing of all that reads untrusted bytes: `python -m tests.fuzz records --seconds 60`."""
