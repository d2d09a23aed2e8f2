from pathlib import Path

import msgspec
import pytest

from inference.artifact import resolve
from training import limits, synthetic

DEFAULT = resolve("default")


def test_planted_regimes_are_nearly_as_well_foretold_as_they_can_be() -> None:
    recipe = msgspec.structs.replace(limits.RECIPE, members=1, passes=6)  # docs/model.md has the full figure
    gain = limits.planted(synthetic.PLANTED, markets=5, recipe=recipe)
    assert gain.optimal > 0.15
    assert 0.8 <= gain.recovered <= 1.02  # above 1 only by the chance of what happened


@pytest.mark.skipif(not Path(DEFAULT / "manifest.json").exists(), reason="the default artifact has not been made")
def test_the_shipped_model_claims_no_direction_on_random_walks() -> None:
    said = limits.random_walks(DEFAULT, candles=9_000)
    assert len(said) == 20
    assert said.count("skill above the prior") <= 2  # 2.5 % each by chance
