import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve import Application

from pixellm.errors import ConfigError
from serve.app import build_app

ROOT = Path(__file__).parents[2]


def test_the_builder_takes_what_serve_hands_it():
    assert len(inspect.signature(build_app).parameters) == 1  # Serve refuses a builder with more
    assert isinstance(build_app({"model": "models/any"}), Application)


def test_wrong_arguments_are_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="did you mean 'model'"):
        build_app({"modle": "models/any"})


def test_the_ingress_starts_without_torch_deepspeed_and_peft():
    code = "import sys; sys.modules['deepspeed'] = sys.modules['peft'] = None; import serve.app; assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
