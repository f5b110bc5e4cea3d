"""The script that takes rules away finds the places of all of them."""

from __future__ import annotations

import pytest

from mutants import MUTANTS, ROOT, Mutant

# A line that a refactoring has moved is the mutation's to follow, not a failure of the product.
pytestmark = pytest.mark.long


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutation_has_its_one_place(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
