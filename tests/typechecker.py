"""The checker of the tests: beartype with the rule of Python's typing that an int will do where a float is asked for."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
