"""Wrong answers, made from a right one by changing a piece of it."""


def changed(right, old, new):
    """`right` with its one piece `old` replaced. ValueError unless it is there exactly once."""
    if right.count(old) != 1:
        raise ValueError(f"{old!r} is {right.count(old)} times in the source, needs to be once")
    return right.replace(old, new)


def slips(right, *rows):
    """[(short name, source, fragment of the message)], as WRONG has them.

    rows: (short name, piece of the right answer, what stands there instead, fragment).
    """
    return [(short, changed(right, old, new), said) for short, old, new, said in rows]
