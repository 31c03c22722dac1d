"""Pure functions of numbers: parsing of answers, shot groups, errors. Imports numpy and no other package of ours."""
