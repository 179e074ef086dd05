"""JSON files of COCO and of SQuAD become the rows that other files hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.reading.known import known_rows
from autocompress.huggingface.data.records import read_records

COCO = {
    "images": [{"id": 7, "file_name": "a.png", "width": 9}, {"id": 5, "file_name": "b.png"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1},
        {"id": 2, "image_id": 5, "category_id": 1, "bbox": [0, 0, 5, 5]},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
}
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "a dog ran",
                    "qas": [
                        {
                            "id": "1",
                            "question": "who?",
                            "answers": [{"text": "dog", "answer_start": 2}],
                        },
                        {"id": "2", "question": "why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}


def read(value: Any, tmp_path: Path) -> list[Any]:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(value))
    return [record.values for record in read_records(str(file), [])]


def test_pictures_of_coco(tmp_path: Path) -> None:
    assert read(COCO, tmp_path) == [
        {"file_name": "a.png", "objects": []},
        {
            "file_name": "b.png",
            "objects": [
                {"bbox": [1, 2, 3, 4], "category": "dog", "iscrowd": 1},
                {"bbox": [0, 0, 5, 5], "category": "cat", "iscrowd": 0},
            ],
        },
    ]


def test_questions_of_squad(tmp_path: Path) -> None:
    assert read(SQUAD, tmp_path) == [
        {
            "question": "who?",
            "context": "a dog ran",
            "answers": {"text": ["dog"], "answer_start": [2]},
        },
        {
            "question": "why?",
            "context": "a dog ran",
            "answers": {"text": [], "answer_start": []},
        },
    ]


def test_a_part_that_is_missing(tmp_path: Path) -> None:
    for broken in ({**COCO, "categories": []}, {**COCO, "images": [{"id": 7}]}):
        with pytest.raises(TaskError, match=r"a\.json: lacks a part that files of its layout have"):
            read(broken, tmp_path)


@pytest.mark.parametrize(
    "value", [[], {}, {"data": []}, {"data": [5]}, {"data": [{"text": "a"}]}, {"images": []}]
)
def test_other_values(value: Any) -> None:
    assert known_rows(value) is None
