"""The parts of documents that commands write: between two marks, one of which names the command."""


def rewritten(text: str, name: str, command: str, table: str) -> str:
    """A document whose part of that name says the table. Raises ValueError without its marks."""
    begin, end = f"<!-- {name}: python -m {command} -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"
