"""What another library's error says, fit for the middle of a sentence."""


def reason(error: Exception) -> str:
    """Return the error's text on one line of at most 200 characters, or its class where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
