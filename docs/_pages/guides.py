"""A guide as a page: a Python file whose comments between blank lines are the text."""

import ast


def markdown(code: str) -> str:
    """The page of a guide: its docstring, then comments as text and all else as code.

    A paragraph of comment lines that begin at the margin is text; what stands between two of them
    is one block of code.
    """
    tree = ast.parse(code)
    body = "\n".join(code.splitlines()[tree.body[0].end_lineno :])
    page, block = [ast.get_docstring(tree)], []
    for paragraph in body.split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        if lines and all(line.startswith("#") for line in lines):
            page += _code(block)
            page.append("\n".join(line[1:].removeprefix(" ") for line in lines))
            block = []
        else:
            block.append(paragraph.strip("\n"))
    return "\n\n".join([*page, *_code(block)]) + "\n"


def _code(paragraphs):
    text = "\n\n".join(paragraphs).strip("\n")
    return [f"```python\n{text}\n```"] if text else []
