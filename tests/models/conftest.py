import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The networks here are too small to share out; waiting threads slow a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def classifiers_of_few_steps(monkeypatch):
    """`vimae evaluate` trains one."""
    from vimae_models.metrics import classifier

    monkeypatch.setitem(classifier.load_or_train.__kwdefaults__, "steps", 30)
