import pytest

from pixellm.inference.config import EngineConfig
from pixellm.inference.stepper import Stepper
from tests.inference.models import mini_model, speaking_model_and_processor


@pytest.fixture(scope="session")
def speaking():
    return speaking_model_and_processor()


@pytest.fixture(scope="module")
def model():
    return mini_model()


@pytest.fixture
def stepper(model):
    return Stepper(model, EngineConfig(num_slots=4, slot_tokens=64))
