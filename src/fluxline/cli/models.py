"""`fluxline models`: the models known by name."""


def models() -> None:
    """List the models known by name; a folder, a file or a hub id works as well."""
    from rich.console import Console
    from rich.table import Table

    from fluxline.models.registry import MODELS

    table = Table("name", "family", "from")
    for name, entry in MODELS.items():
        source = "shipped with fluxline" if entry.is_asset else entry.source
        source += f", {entry.beside}" if entry.beside else ""
        table.add_row(name, entry.family, source)
    Console().print(table)
