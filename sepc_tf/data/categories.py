"""The categories of a data set, and whether two of them are the same."""

from __future__ import annotations

from typing import Any

from sepc_tf.data.coco import CocoDataset


def categories_of(dataset: CocoDataset) -> list[dict]:
    """Returns `[{"id": int, "name": str}, ...]` in the order of the labels.

    Example:
        >>> categories_of(dataset)[0]
        {'id': 1, 'name': 'zero'}
    """
    return [
        {"id": number, "name": name}
        for number, name in zip(dataset.category_ids, dataset.class_names)
    ]


def are_categories(value: Any) -> bool:
    """Whether a value, as read from JSON, is what `categories_of` returns.

    Example:
        >>> are_categories([{"id": 1, "name": "zero"}]), are_categories({"1": "zero"})
        (True, False)
    """
    return (
        isinstance(value, list)
        and value != []
        and all(
            isinstance(item, dict)
            and isinstance(item.get("id"), int)
            and isinstance(item.get("name"), str)
            for item in value
        )
    )


def category_differences(
    first: list[dict], second: list[dict], names: tuple[str, str]
) -> list[str]:
    """Lists every category that is not the same in both.

    Args:
        first, second: as `categories_of` gives them.
        names: what the two are, for the text.

    Returns:
        One line for each difference; none where the detectors of both are interchangeable.

    Example:
        >>> cat, dog = [{"id": 1, "name": "cat"}], [{"id": 1, "name": "dog"}]
        >>> category_differences(cat, dog, ("training", "validation"))
        ["id 1: 'cat' in training, 'dog' in validation"]
    """
    ours, theirs = ({item["id"]: item["name"] for item in items} for items in (first, second))
    lines = []
    for number in sorted({*ours, *theirs}):
        if number not in theirs:
            lines.append(f"id {number}: {ours[number]!r} only in {names[0]}")
        elif number not in ours:
            lines.append(f"id {number}: {theirs[number]!r} only in {names[1]}")
        elif ours[number] != theirs[number]:
            lines.append(
                f"id {number}: {ours[number]!r} in {names[0]}, {theirs[number]!r} in {names[1]}"
            )
    return lines
