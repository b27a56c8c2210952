"""What another library's error says, fit for the middle of a sentence."""


def reason(error: BaseException) -> str:
    """Return the error's text on one line of at most 200 characters, or its class where it has none."""
    return shorten(str(error)) or type(error).__name__


def shorten(text: str) -> str:
    """Return `text` on one line of at most 200 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:199]}…"
