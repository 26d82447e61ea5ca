import pytest

from tests.inference.models import speaking_model_and_processor


@pytest.fixture(scope="session")
def speaking():
    return speaking_model_and_processor()
