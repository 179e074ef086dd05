"""Provide built-in tasks: `autocompress.tasks:easy_vqa` is the task behind `make demo`."""

from autocompress.tasks.easy_vqa import easy_vqa

__all__ = ["easy_vqa"]
