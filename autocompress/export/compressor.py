"""Make the compressed module and the ONNX graph of any candidate of one model.

A `Compressor` joins the three parts that a candidate needs: the builder of graphs, the library of
compressed weights, and the stitcher that simulates. Everything that compresses goes through it:
searches, their finished files, `reproduce`, and `autocompress.compress`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from onnx import ModelProto
from torch import nn

from autocompress.candidate import Candidate
from autocompress.compress.assemble.library import LIBRARY_BYTES, VariantLibrary
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.assemble.variant import Variant
from autocompress.export.build import Builder
from autocompress.export.lowering.rewrite import Recipe
from autocompress.integer_form import IntegerForm


@dataclass(frozen=True)
class Compressor:
    """Make candidates of one model.

    Attributes:
        builder: builds graphs, and knows their size before any weight is compressed.
        stitcher: simulates one candidate at a time in a model that it keeps; its `library` holds
            the compressed weights.
    """

    builder: Builder
    stitcher: Stitcher

    @classmethod
    def of(
        cls,
        builder: Builder,
        folder: Path | None = None,
        memory_bytes: int = LIBRARY_BYTES,
        device: torch.device | None = None,
    ) -> Compressor:
        """Make the library and the stitcher of a builder.

        Args:
            builder: the exported, calibrated model; its modules are moved to `device`.
            folder: caches compressed weights between processes; None caches nothing on disk.
            memory_bytes: most bytes of compressed weights in memory.
            device: where candidates are compressed and simulated; None leaves the model in place.

        Returns:
            The compressor of the model.
        """

        def form(name: str) -> IntegerForm:
            return builder.module_kernels.integer_form(builder.module_map[name])

        library = VariantLibrary(builder.evidence, folder, form, memory_bytes)
        teacher = builder.teacher if device is None else builder.teacher.to(device)
        return cls(builder, Stitcher(teacher, builder.module_map, library, builder.plan))

    def module(self, candidate: Candidate, trained: Trained | None = None) -> nn.Module:
        """Return the compressed module of a candidate.

        Args:
            candidate: the configs of the modules.
            trained: weights and ranges after recovery; None takes the compressed weights.

        Returns:
            A module in eval mode that shares nothing with the compressor and is never changed by
            it. It computes what the file of `graph` computes.
        """
        return copy.deepcopy(self.stitcher.apply(candidate, trained))

    def graph(self, candidate: Candidate, trained: Trained | None = None) -> ModelProto:
        """Build the ONNX graph of a candidate.

        Args:
            candidate: the configs of the modules.
            trained: weights and ranges after recovery; None takes the compressed weights.

        Returns:
            The content of model.onnx.
        """
        return self.builder.build(self.recipe(candidate, trained))

    def recipe(self, candidate: Candidate, trained: Trained | None = None) -> Recipe:
        """Collect the parts of the graph of a candidate.

        Args:
            candidate: the configs of the modules.
            trained: weights and ranges after recovery; None takes the compressed weights.

        Returns:
            What `Builder.build` makes the graph of.
        """
        if trained is not None:
            return self.builder.recipe(candidate, {}, trained)
        variants, statistics = self.variants(candidate), self.stitcher.statistics(candidate)
        return self.builder.recipe(candidate, variants, statistics=statistics)

    def variants(self, candidate: Candidate) -> dict[str, Variant]:
        """Compress the weights of a candidate, or read them from the library.

        Args:
            candidate: the configs of the modules.

        Returns:
            Compressed weights by site of the graph.
        """
        variants = {}
        for sites in self.builder.lowered.sites.values():
            for site in sites:
                variants[site.name] = self.stitcher.variant(site.name, site.owner, candidate)
        return variants
