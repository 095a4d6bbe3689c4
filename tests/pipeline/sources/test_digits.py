from collections import Counter
from pathlib import Path

from pipeline.sources.config import DigitsConfig
from pipeline.sources.digits import Digits
from pipeline.splits import HELD_OUT, POOL


def test_its_size_is_that_of_what_it_yields_but_for_copies_and_broken_files() -> None:
    for long_tail in (1.0, 15.0):
        source = Digits(DigitsConfig(long_tail=long_tail))
        plain = [record for record in source.records("digits", Path("unused")) if record.key.count(".") == 1]
        counts = Counter(record.split for record in plain)
        assert source.size()[:2] == (counts[POOL], counts[HELD_OUT])
        assert counts[HELD_OUT] == 359
