"""The type checker that ``conftest`` puts around every function of the library while tests run.

An int may stand where a float is declared, as static checkers have it.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
