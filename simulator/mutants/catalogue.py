"""All mutants, by name."""

from __future__ import annotations

from simulator.mutants.in_code import CODE_MUTANTS
from simulator.mutants.in_conditions import CONDITION_MUTANTS
from simulator.mutants.in_scripts import SCRIPT_MUTANTS
from simulator.mutants.model import Mutant

MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant for mutant in (*CODE_MUTANTS, *SCRIPT_MUTANTS, *CONDITION_MUTANTS)
}
