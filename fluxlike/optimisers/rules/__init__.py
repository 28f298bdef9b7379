"""The rules, by what they have in common: the steps that move the parameters."""
