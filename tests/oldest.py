"""Print pip constraints for the lowest versions that a pyproject.toml allows."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def oldest(pyproject: str) -> list[str]:
    """`name==version` of each requirement `name>=version`, extras included."""
    project = tomllib.loads(pyproject)["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [
        re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)", requirement)
        for group in groups
        for requirement in group
    ]
    return [f"{match[1]}=={match[2]}" for match in found if match]


if __name__ == "__main__":
    print("\n".join(oldest(Path(sys.argv[1]).read_text())))
