"""Divide the threads of a machine between workers."""

from __future__ import annotations

import os

import torch
from threadpoolctl import threadpool_info, threadpool_limits

from autocompress.search.shares import divide_threads


def test_workers_divide_the_threads_of_torch_and_of_the_blas(monkeypatch) -> None:
    def threads() -> set[int]:
        return {torch.get_num_threads()} | {
            found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"
        }

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    before = torch.get_num_threads()
    with threadpool_limits(2, user_api="blas"):  # restored at its end
        divide_threads(1)
        assert threads() == {2}
        divide_threads(2)
        assert threads() == {1}
        divide_threads(5)
        assert threads() == {1}, "never none"
    torch.set_num_threads(before)
