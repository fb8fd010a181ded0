"""The hooks of pre-commit are the lines of `make lint`."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent


def test_hooks_run_what_make_lint_runs():
    makefile = (REPOSITORY / "Makefile").read_text()
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.M)
    assert recipe
    # Without the files: pre-commit passes those that a commit changes.
    linted = re.findall(r"\$\(RUN\) (.*?)(?: \.| \$\(CXX_FILES\))?$", recipe[1], re.M)
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"entry: \.venv/bin/(.*)$", hooks, re.M)
    assert len(linted) == 5
    assert entries == linted
