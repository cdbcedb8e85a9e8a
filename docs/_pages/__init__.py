"""Pages that are made of the source when the site is built; nothing here imports TensorFlow."""


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in [head, *rows]]
    lines.insert(1, " | ".join(["---"] * len(head)))
    return [f"| {line} |" for line in lines]
