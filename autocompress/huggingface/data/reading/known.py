"""Turn JSON files of COCO and of SQuAD into rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = list[dict[str, Any]]


def known_rows(value: Any) -> Rows | None:
    """Return the samples of an object that a data set in a known layout is.

    Args:
        value: of a whole JSON file.

    Returns:
        A row for each picture of COCO's object detection ("file_name", "objects") or for each
        question of SQuAD ("question", "context", "answers"); None for anything else.

    Raises:
        KeyError, TypeError, AttributeError: an entry of such a layout lacks a part.
    """
    if not isinstance(value, Mapping):
        return None
    if {"images", "annotations", "categories"} <= value.keys():
        return _coco(value)
    articles = value.get("data")
    if not isinstance(articles, list) or not articles or not isinstance(articles[0], Mapping):
        return None
    return _squad(articles) if "paragraphs" in articles[0] else None


def _coco(value: Mapping[str, Any]) -> Rows:
    """Return pictures with the boxes of their objects, and the names of the objects' classes."""
    names = {category["id"]: category["name"] for category in value["categories"]}
    objects: dict[Any, Rows] = {picture["id"]: [] for picture in value["images"]}
    for entry in value["annotations"]:
        objects[entry["image_id"]].append(
            {
                "bbox": entry["bbox"],
                "category": names[entry["category_id"]],
                "iscrowd": entry.get("iscrowd", 0),
            }
        )
    return [
        {"file_name": picture["file_name"], "objects": objects[picture["id"]]}
        for picture in value["images"]
    ]


def _squad(articles: list[Mapping[str, Any]]) -> Rows:
    """Return questions with their context and answers; one without an answer has none."""
    return [
        {
            "question": entry["question"],
            "context": paragraph["context"],
            "answers": {
                "text": [answer["text"] for answer in entry["answers"]],
                "answer_start": [answer["answer_start"] for answer in entry["answers"]],
            },
        }
        for article in articles
        for paragraph in article["paragraphs"]
        for entry in paragraph["qas"]
    ]
