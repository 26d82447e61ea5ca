"""The revision that checkpoints and results carry."""

import re

from pixellm.revision import git_revision


def test_the_environment_says_it_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PIXELLM_GIT_REVISION", "abc")
    assert git_revision() == "abc"


def test_git_is_asked_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("PIXELLM_GIT_REVISION", raising=False)
    found = git_revision()
    assert found is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision() is None
