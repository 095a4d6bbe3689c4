"""Two finished runs and their pages, made once."""

from pathlib import Path

import pytest

from launch.report.page import write
from pipeline.runtime.inline import InlineExecutor
from tests.launch.report.runs import make_run


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory, executor: InlineExecutor) -> Path:
    """A run on images of two classes, up to its first selection."""
    return make_run(tmp_path_factory.mktemp("labelled"), executor, folders=("train/dark", "train/light"))


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, executor: InlineExecutor) -> Path:
    """The same run on images without classes."""
    return make_run(tmp_path_factory.mktemp("unlabelled"), executor, folders=(".",))


@pytest.fixture(scope="session")
def labelled_page(labelled: Path) -> str:
    """The HTML of the page about `labelled`."""
    return write(labelled).read_text()


@pytest.fixture(scope="session")
def unlabelled_page(unlabelled: Path) -> str:
    """The HTML of the page about `unlabelled`."""
    return write(unlabelled).read_text()
